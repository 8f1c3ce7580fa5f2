//! When a sync group has entered a state: when all its instances have. Pure.

use std::collections::BTreeMap;

use crate::model::{SyncGroup, VrrpState};

/// What is known of every group.
#[derive(Debug, Default)]
pub struct Groups {
    all: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    setup: SyncGroup,
    states: BTreeMap<String, VrrpState>,
    /// The state that it entered last.
    entered: Option<VrrpState>,
    /// No longer configured; its instances end.
    leaving: bool,
}

impl Groups {
    /// Follows a configuration. What is known of instances that stay in their group stays known. A group
    /// that is gone with all its instances lasts until they have stopped.
    pub fn configure(&mut self, groups: &[SyncGroup], instances: &[String]) {
        let before = std::mem::take(&mut self.all);
        let (stay, gone): (Vec<Group>, Vec<Group>) = before
            .into_iter()
            .partition(|group| groups.iter().any(|new| new.name == group.setup.name));
        self.all = groups
            .iter()
            .map(|setup| {
                let old = stay.iter().find(|old| old.setup.name == setup.name);
                let state = |name: &String| {
                    let known = old.and_then(|old| old.states.get(name)).copied();
                    (name.clone(), known.unwrap_or(VrrpState::Init))
                };
                Group {
                    setup: setup.clone(),
                    states: setup.members.iter().map(state).collect(),
                    entered: old.and_then(|old| old.entered),
                    leaving: false,
                }
            })
            .collect();
        let ended = gone.into_iter().filter(|group| {
            let stays = |name: &String| instances.contains(name);
            !group.states.keys().any(stays)
        });
        self.all.extend(ended.map(|group| Group {
            leaving: true,
            ..group
        }));
    }

    /// An instance entered a state: the group that has entered it with it.
    pub fn entered(&mut self, instance: &str, state: VrrpState) -> Option<SyncGroup> {
        let index = self
            .all
            .iter()
            .position(|group| group.states.contains_key(instance))?;
        let group = &mut self.all[index];
        group.states.insert(instance.to_owned(), state);
        let complete = group.states.values().all(|other| *other == state);
        if !complete || group.entered == Some(state) {
            return None;
        }
        group.entered = Some(state);
        let setup = group.setup.clone();
        if group.leaving && state == VrrpState::Init {
            self.all.remove(index);
        }
        Some(setup)
    }

    /// Whether there is such a group, or its instances are ending.
    pub fn knows(&self, name: &str) -> bool {
        self.all.iter().any(|group| group.setup.name == name)
    }

    /// Configured groups with the state that each entered last.
    pub fn states(&self) -> impl Iterator<Item = (&SyncGroup, Option<VrrpState>)> {
        self.all
            .iter()
            .filter(|group| !group.leaving)
            .map(|group| (&group.setup, group.entered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NotifyScripts;
    use VrrpState::{Backup, Fault, Init, Master};

    fn group(name: &str, members: &[&str]) -> SyncGroup {
        SyncGroup {
            name: name.into(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
            notify: NotifyScripts::default(),
        }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The group entered a state, as `name state`.
    fn feed(groups: &mut Groups, rows: &[(&str, VrrpState)]) -> Vec<String> {
        rows.iter()
            .filter_map(|(instance, state)| {
                let group = groups.entered(instance, *state)?;
                Some(format!("{} {state}", group.name))
            })
            .collect()
    }

    #[test]
    fn a_group_is_where_all_its_instances_are() {
        let mut groups = Groups::default();
        groups.configure(&[group("VG", &["A", "B"])], &names(&["A", "B", "C"]));
        let rows = [
            ("A", Backup),
            ("C", Backup),
            ("B", Backup),
            ("B", Master),
            ("A", Master),
            ("A", Fault),
            ("B", Fault),
            ("A", Backup),
            ("A", Fault),
            ("A", Backup),
            ("B", Backup),
            ("A", Init),
            ("B", Init),
        ];
        let seen = feed(&mut groups, &rows);
        let expected = ["VG BACKUP", "VG MASTER", "VG FAULT", "VG BACKUP", "VG INIT"];
        assert_eq!(seen, expected);
    }

    #[test]
    fn one_that_joins_makes_no_news() {
        let mut groups = Groups::default();
        groups.configure(&[group("VG", &["A", "B"])], &names(&["A", "B"]));
        feed(&mut groups, &[("A", Master), ("B", Master)]);
        groups.configure(&[group("VG", &["A", "B", "C"])], &names(&["A", "B", "C"]));
        assert!(feed(&mut groups, &[("C", Backup), ("C", Master)]).is_empty());
        assert_eq!(
            feed(&mut groups, &[("A", Backup), ("B", Backup), ("C", Backup)]),
            ["VG BACKUP"]
        );
    }

    #[test]
    fn a_group_that_a_reload_removes() {
        // With its instances: it stops when they have.
        let mut groups = Groups::default();
        groups.configure(&[group("VG", &["A", "B"])], &names(&["A", "B"]));
        feed(&mut groups, &[("A", Master), ("B", Master)]);
        groups.configure(&[], &[]);
        assert_eq!(groups.states().count(), 0);
        assert_eq!(feed(&mut groups, &[("A", Init), ("B", Init)]), ["VG INIT"]);
        assert!(feed(&mut groups, &[("A", Init)]).is_empty());
        // Without them: there is no group any more.
        groups.configure(&[group("VG", &["A", "B"])], &names(&["A", "B"]));
        groups.configure(&[], &names(&["A", "B"]));
        assert!(feed(&mut groups, &[("A", Backup), ("B", Backup)]).is_empty());
    }
}
