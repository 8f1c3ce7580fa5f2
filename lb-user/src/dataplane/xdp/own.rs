//! What frames are for this host, as the program sees them: MAC addresses and VLANs.

use std::collections::HashSet;

use aya::maps::{HashMap, MapData, MapError};
use lb_common::{
    control::{Features, VlanSet, mac_word, vlan_key},
    limits::VLAN_SETS,
};

use super::{control::ControlElement, mapped::MappedArray};

impl ControlElement {
    /// Makes these the MAC addresses of this host, each at an interface.
    pub fn follow_macs(&self, macs: &[(u32, [u8; 6])]) {
        let words: Vec<u64> = macs
            .iter()
            .map(|(ifindex, mac)| {
                let word = |at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
                mac_word([word(0), word(2), word(4)], *ifindex)
            })
            .collect();
        if !self.set_macs(&words) {
            tracing::error!(
                count = words.len(),
                "too many MAC addresses to tell own frames from flooded ones; all are taken for own"
            );
        }
    }
}

/// The slots of all interfaces. Of two that share one, the first has it.
fn sets(vlans: &[(u32, [u16; 2])]) -> Vec<VlanSet> {
    let mut sets = vec![VlanSet::NONE; VLAN_SETS as usize];
    for (ifindex, [outer, inner]) in vlans {
        let set = &mut sets[(ifindex % VLAN_SETS) as usize];
        if set.ifindex == 0 {
            set.ifindex = u64::from(*ifindex);
        }
        if set.ifindex == u64::from(*ifindex) && *inner == 0 {
            set.add(*outer);
        }
    }
    sets
}

/// The maps of this host's VLANs.
pub struct OwnVlans {
    map: HashMap<MapData, u64, u32>,
    sets: MappedArray<VlanSet>,
    /// What the map holds.
    held: HashSet<u64>,
}

impl OwnVlans {
    /// What an earlier daemon left in the map is replaced by the first [`OwnVlans::follow`].
    pub fn open(map: HashMap<MapData, u64, u32>, sets: MappedArray<VlanSet>) -> Self {
        let held = map.keys().flatten().collect();
        Self { map, sets, held }
    }

    /// Makes the map hold these, and has the program ask it. New ones come before old ones go.
    pub fn follow(&mut self, control: &ControlElement, vlans: &[(u32, [u16; 2])]) {
        let key = |(ifindex, [outer, inner]): &(u32, [u16; 2])| vlan_key(*ifindex, *outer, *inner);
        let wanted: HashSet<u64> = vlans.iter().map(key).collect();
        let mut added = self.add(&wanted);
        if added.is_err() {
            // Old ones may be in the way: nobody asks until they are gone.
            control.set_feature(Features::VLANS, false);
            self.keep(&wanted);
            added = self.add(&wanted);
        }
        self.keep(&wanted);
        if let Err(error) = added {
            tracing::error!(
                %error,
                count = wanted.len(),
                "cannot write down this host's VLANs; frames of every VLAN are taken for own"
            );
            return;
        }
        for (slot, set) in sets(vlans).iter().enumerate() {
            if self.sets.load(slot) != *set {
                self.sets.store(slot, set);
            }
        }
        control.set_feature(Features::VLANS, true);
    }

    fn add(&mut self, wanted: &HashSet<u64>) -> Result<(), MapError> {
        for key in wanted {
            if !self.held.contains(key) {
                self.map.insert(key, 1, 0)?;
                self.held.insert(*key);
            }
        }
        Ok(())
    }

    fn keep(&mut self, wanted: &HashSet<u64>) {
        for key in self.held.difference(wanted) {
            // That it is gone already is fine.
            let _ = self.map.remove(key);
        }
        self.held.retain(|key| wanted.contains(key));
    }

    /// What the map holds, for dumps: interface index, outer id, inner id.
    pub fn entries(&self) -> Vec<(u32, u16, u16)> {
        let parts = |key: &u64| ((key >> 32) as u32, (key >> 16) as u16, *key as u16);
        let mut entries: Vec<_> = self.held.iter().map(parts).collect();
        entries.sort_unstable();
        entries
    }
}

#[cfg(test)]
mod tests {
    use lb_common::control::EVERY_VLAN;

    use super::*;

    #[test]
    fn slots_of_interfaces() {
        let sets = sets(&[
            (2, [100, 0]),
            (2, [100, 7]),
            (2 + VLAN_SETS, [5, 0]),
            (3, [EVERY_VLAN, 0]),
            (4, [9, 9]),
        ]);
        assert_eq!(
            (sets[2].ifindex, sets[3].ifindex, sets[4].ifindex),
            (2, 3, 4)
        );
        assert!(sets[2].has(100) && !sets[2].has(5) && !sets[2].has(7));
        assert!(sets[3].has(4_000) && !sets[4].has(9));
        assert!(sets[5..].iter().all(|set| *set == VlanSet::NONE));
    }
}
