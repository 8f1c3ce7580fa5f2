//! Which mastership flag of the data plane belongs to which VRRP instance. Pure.

use std::collections::HashMap;

use super::succession::Succession;

/// Flags by instance name; 0 is nobody's.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    indexes: HashMap<String, u16>,
}

impl Roles {
    /// Follows instances that are called otherwise now.
    pub fn rename(&mut self, names: &Succession) {
        let before = std::mem::take(&mut self.indexes).into_iter();
        self.indexes = before
            .map(|(name, index)| (names.rename(name), index))
            .collect();
    }

    /// Gives every name a flag, keeping those given before. Returns the flags that were freed; they
    /// may still be set, so nobody else gets them in the same turn.
    pub fn follow(&mut self, names: &[String]) -> Vec<u16> {
        let mut freed = Vec::new();
        self.indexes.retain(|name, index| {
            let kept = names.contains(name);
            if !kept {
                freed.push(*index);
            }
            kept
        });
        for name in names {
            if !self.indexes.contains_key(name) {
                let taken: Vec<u16> = self.indexes.values().chain(&freed).copied().collect();
                if let Some(index) = (1..=u16::MAX).find(|index| !taken.contains(index)) {
                    self.indexes.insert(name.clone(), index);
                }
            }
        }
        freed
    }

    /// All flags.
    pub fn indexes(&self) -> &HashMap<String, u16> {
        &self.indexes
    }

    /// The flag of an instance.
    pub fn of(&self, name: &str) -> Option<u16> {
        self.indexes.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_kept_and_freed_ones_used_again() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut roles = Roles::default();
        assert!(roles.follow(&names(&["a", "b"])).is_empty());
        assert_eq!((roles.of("a"), roles.of("b")), (Some(1), Some(2)));
        assert_eq!(roles.follow(&names(&["b", "c"])), [1]);
        assert_eq!((roles.of("b"), roles.of("c")), (Some(2), Some(3)));
        roles.follow(&names(&["b", "c", "d"]));
        assert_eq!(roles.of("d"), Some(1));
    }
}
