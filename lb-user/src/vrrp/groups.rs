//! Sync groups: instances that become master, and fail, together, by keepalived's rules. An instance
//! whose master is silent only wants to be master until all of its group do; so a single broken network
//! does not make the group change sides for ever.

use std::collections::BTreeMap;

use super::{
    fsm::Event,
    round::{Outside, feed},
    runner::Runner,
};
use crate::model::VrrpState;

/// Which instances belong together, by their places in the thread's list. Found once for a configuration: every
/// packet ends in a look at all groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    members: Vec<Vec<usize>>,
}

impl Groups {
    pub(super) fn of(runners: &[Runner]) -> Self {
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, runner) in runners.iter().enumerate() {
            if let Some(group) = &runner.instance.sync_group {
                groups.entry(group).or_default().push(index);
            }
        }
        Self {
            members: groups.into_values().collect(),
        }
    }
}

/// Makes the instances of each sync group follow the one that changed last. One that is broken
/// makes all of them fail, and they recover together.
pub(super) fn settle_all(outside: &impl Outside, runners: &mut [Runner], groups: &Groups) {
    for group in &groups.members {
        settle(outside, runners, group);
    }
    for runner in runners {
        runner.announced = false;
    }
}

fn settle(outside: &impl Outside, runners: &mut [Runner], group: &[usize]) {
    while let Some((index, state)) = next_to_follow(runners, group) {
        feed(outside, &mut runners[index], Event::Follow(state));
    }
    while let Some(index) = next_to_announce(runners, group) {
        runners[index].announced = true;
        runners[index].to_announce = true;
    }
}

/// The members of a group, with their indexes.
fn members<'r>(
    runners: &'r [Runner],
    group: &'r [usize],
) -> impl Iterator<Item = (usize, &'r Runner)> + Clone {
    let place = |index: &usize| Some((*index, runners.get(*index)?));
    group.iter().filter_map(place)
}

/// A member that is not where its group is, and where that is. Ends after as many steps as there are
/// members.
fn next_to_follow(runners: &[Runner], group: &[usize]) -> Option<(usize, VrrpState)> {
    let all = members(runners, group);
    let state = |runner: &Runner| runner.machine.state();
    let takes_part =
        |runner: &Runner| matches!(state(runner), VrrpState::Backup | VrrpState::Master);
    if all.clone().any(|(_, runner)| runner.is_broken()) {
        let (index, _) = all.clone().find(|(_, runner)| takes_part(runner))?;
        return Some((index, VrrpState::Fault));
    }
    if let Some((index, _)) = all.clone().find(|(_, r)| state(r) == VrrpState::Fault) {
        return Some((index, VrrpState::Backup));
    }
    let willing = |runner: &Runner| runner.wants_to_be_master || state(runner) == VrrpState::Master;
    if all.clone().all(|(_, runner)| willing(runner)) {
        let waits = all
            .clone()
            .find(|(_, runner)| state(runner) == VrrpState::Backup);
        return waits.map(|(index, _)| (index, VrrpState::Master));
    }
    // Whoever changed last knows best: it heard a higher priority, or nothing at all.
    let active = all.filter(|(_, runner)| takes_part(runner));
    let (_, leader) = active.clone().max_by_key(|(_, runner)| runner.changed)?;
    let target = state(leader);
    let (index, _) = active.clone().find(|(_, runner)| state(runner) != target)?;
    Some((index, target))
}

/// A master whose addresses must be announced because those of another member were.
fn next_to_announce(runners: &[Runner], group: &[usize]) -> Option<usize> {
    let all = members(runners, group);
    if !all.clone().any(|(_, runner)| runner.announced) {
        return None;
    }
    all.into_iter()
        .find(|(_, runner)| !runner.announced && runner.machine.state() == VrrpState::Master)
        .map(|(index, _)| index)
}
