//! The lists of sources and the limit of their rate, as the program sees them.

use std::{collections::HashSet, net::IpAddr};

use aya::maps::{LpmTrie, MapData, lpm_trie::Key};
use lb_common::{
    control::{Features, Rate},
    protect,
};

use super::{control::ControlElement, image, object::map_error};
use crate::{
    dataplane::DataPlaneError,
    model::{IpPrefix, Protection, SourceRule},
};

/// Both prefix maps.
pub struct Sources {
    v4: LpmTrie<MapData, [u8; 4], u32>,
    v6: LpmTrie<MapData, [u8; 16], u32>,
    /// What the maps hold.
    held: HashSet<(IpPrefix, SourceRule)>,
}

impl Sources {
    /// What an earlier daemon left in the maps is replaced by the first [`Sources::follow`].
    pub fn open(v4: LpmTrie<MapData, [u8; 4], u32>, v6: LpmTrie<MapData, [u8; 16], u32>) -> Self {
        let mut held = HashSet::new();
        held.extend(v4.iter().flatten().filter_map(|(key, rule)| {
            Some((
                prefix(key.data().into(), key.prefix_len())?,
                of_number(rule)?,
            ))
        }));
        held.extend(v6.iter().flatten().filter_map(|(key, rule)| {
            Some((
                prefix(key.data().into(), key.prefix_len())?,
                of_number(rule)?,
            ))
        }));
        Self { v4, v6, held }
    }

    /// Makes the maps hold what `protection` says. New entries come before old ones go, so that no
    /// source slips through meanwhile.
    pub fn follow(
        &mut self,
        control: &ControlElement,
        protection: &Protection,
    ) -> Result<(), DataPlaneError> {
        let wanted: HashSet<(IpPrefix, SourceRule)> = protection.sources.iter().copied().collect();
        let added: Vec<_> = wanted.difference(&self.held).copied().collect();
        for (prefix, rule) in added {
            self.insert(prefix, rule)?;
        }
        let kept: HashSet<IpPrefix> = wanted.iter().map(|(prefix, _)| *prefix).collect();
        for (prefix, _) in self.held.difference(&wanted) {
            if kept.contains(prefix) {
                continue;
            }
            let length = u32::from(prefix.length);
            // That it is gone already is fine.
            let _ = match prefix.address {
                IpAddr::V4(a) => self.v4.remove(&Key::new(length, a.octets())),
                IpAddr::V6(a) => self.v6.remove(&Key::new(length, a.octets())),
            };
        }
        self.held = wanted;
        control.set_feature(Features::SOURCES, !self.held.is_empty());
        let rate = protection.source_rate.map_or(Rate::default(), image::rate);
        control.set_source_rate(rate);
        Ok(())
    }

    /// Lists one prefix, and writes it down at once: after an error the next call knows what the maps
    /// hold.
    fn insert(&mut self, prefix: IpPrefix, rule: SourceRule) -> Result<(), DataPlaneError> {
        let number = match rule {
            SourceRule::Block => protect::SourceRule::Block,
            SourceRule::Allow => protect::SourceRule::Allow,
        } as u32;
        let length = u32::from(prefix.length);
        match prefix.address {
            IpAddr::V4(a) => self.v4.insert(&Key::new(length, a.octets()), number, 0),
            IpAddr::V6(a) => self.v6.insert(&Key::new(length, a.octets()), number, 0),
        }
        .map_err(|e| map_error(&format!("list the source {prefix}"), &e))?;
        self.held.insert((prefix, rule));
        Ok(())
    }

    /// What the longest prefix that holds an address says.
    pub fn rule_of(&self, address: IpAddr) -> Option<SourceRule> {
        let rule = match address {
            IpAddr::V4(a) => self.v4.get(&Key::new(32, a.octets()), 0),
            IpAddr::V6(a) => self.v6.get(&Key::new(128, a.octets()), 0),
        };
        of_number(rule.ok()?)
    }

    /// What a map holds, for dumps.
    pub fn entries(&self, v4: bool) -> Vec<serde_json::Value> {
        let mut of_family: Vec<_> = self
            .held
            .iter()
            .filter(|(prefix, _)| prefix.address.is_ipv4() == v4)
            .collect();
        of_family.sort_unstable();
        of_family
            .into_iter()
            .map(|(prefix, rule)| serde_json::json!({ "prefix": prefix.to_string(), "rule": rule }))
            .collect()
    }
}

fn prefix(address: IpAddr, length: u32) -> Option<IpPrefix> {
    let length = u8::try_from(length).ok()?;
    Some(IpPrefix { address, length })
}

fn of_number(rule: u32) -> Option<SourceRule> {
    [
        (protect::SourceRule::Block, SourceRule::Block),
        (protect::SourceRule::Allow, SourceRule::Allow),
    ]
    .into_iter()
    .find_map(|(number, name)| (number as u32 == rule).then_some(name))
}
