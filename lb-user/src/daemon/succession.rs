//! Which running instances go on in a new configuration, and under which names. Pure.
//!
//! What the daemon knows of an instance is kept by name, and names may change hands: two instances that exchange
//! their virtual router ids exchange their names, as others see it.

use std::collections::{BTreeMap, HashSet};

use crate::model::Instance;

/// The instances of two configurations, one after the other.
#[derive(Debug, Default)]
pub struct Succession {
    /// Names before with names now, where they differ.
    renamed: BTreeMap<String, String>,
    /// Names of now whose instance was running before.
    running: HashSet<String>,
}

impl Succession {
    /// Compares configurations.
    pub fn of(old: &[Instance], new: &[Instance]) -> Self {
        let mut all = Self::default();
        for before in old {
            if let Some(now) = new.iter().find(|now| before.goes_on_as(now)) {
                all.running.insert(now.name.clone());
                if before.name != now.name {
                    all.renamed.insert(before.name.clone(), now.name.clone());
                }
            }
        }
        // One that ends while another takes its name is called something else until it has ended: names are one
        // word.
        for before in old {
            let ends = !new.iter().any(|now| before.goes_on_as(now));
            if ends && all.running.contains(&before.name) {
                let name = format!("{} (before)", before.name);
                all.renamed.insert(before.name.clone(), name);
            }
        }
        all
    }

    /// The present name of what was called so.
    pub fn name<'n>(&'n self, before: &'n str) -> &'n str {
        self.renamed.get(before).map_or(before, String::as_str)
    }

    /// As [`Succession::name`].
    pub fn rename(&self, name: String) -> String {
        self.renamed.get(&name).cloned().unwrap_or(name)
    }

    /// Whether an instance of the new configuration was running before.
    pub fn is_running(&self, name: &str) -> bool {
        self.running.contains(name)
    }

    /// The name before and the name of now of instances that were called otherwise.
    pub fn successors(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.renamed.iter();
        let all = all.map(|(before, now)| (before.as_str(), now.as_str()));
        all.filter(|(_, now)| self.is_running(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    /// Names with virtual router ids.
    fn instances(list: &[(&str, u8)]) -> Vec<Instance> {
        let table = |(name, vrid): &(&str, u8)| {
            format!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nvirtual_router_id = {vrid}\n\
                 addresses = [\"10.1.15.{vrid}/16\"]\n"
            )
        };
        let text: String = list.iter().map(table).collect();
        parse("lbd.toml", &text, "host").unwrap().instances
    }

    fn of(old: &[(&str, u8)], new: &[(&str, u8)]) -> Succession {
        Succession::of(&instances(old), &instances(new))
    }

    #[test]
    fn names_follow_the_virtual_router() {
        let same = of(&[("a", 1), ("b", 2)], &[("b", 2), ("a", 1), ("c", 3)]);
        assert_eq!((same.name("a"), same.name("b")), ("a", "b"));
        assert!(same.successors().next().is_none() && !same.is_running("c"));
        let swapped = of(&[("a", 1), ("b", 2)], &[("a", 2), ("b", 1)]);
        assert_eq!((swapped.name("a"), swapped.name("b")), ("b", "a"));
        let pairs: Vec<_> = swapped.successors().collect();
        assert_eq!(pairs, [("a", "b"), ("b", "a")]);
        let renamed = of(&[("a", 1)], &[("x", 1)]);
        assert_eq!(renamed.name("a"), "x");
        assert!(renamed.is_running("x"));
    }

    #[test]
    fn one_that_ends_gives_its_name_away() {
        let all = of(&[("a", 1), ("b", 2)], &[("b", 1)]);
        assert_eq!((all.name("a"), all.name("b")), ("b", "b (before)"));
        assert_eq!(all.successors().collect::<Vec<_>>(), [("a", "b")]);
        // Nobody takes over a name that goes to one that starts.
        let all = of(&[("a", 1)], &[("a", 2)]);
        assert_eq!(all.name("a"), "a");
        assert!(!all.is_running("a"));
    }

    #[test]
    fn an_interface_of_a_virtual_mac_address_keeps_its_name() {
        let with_interface = |list: &[(&str, u8)]| {
            let mut all = instances(list);
            for instance in &mut all {
                instance.network.virtual_mac = Some(format!("vrrp.{}", instance.vrid));
            }
            all
        };
        let (old, new) = (with_interface(&[("a", 1)]), with_interface(&[("b", 1)]));
        assert!(!Succession::of(&old, &new).is_running("b"));
        assert!(Succession::of(&old, &old).is_running("a"));
    }
}
