//! Sync groups: instances that become master, and fail, together, by keepalived's rules. An instance
//! whose master is silent only wants to be master until all of its group do; so a single broken network
//! does not make the group change sides for ever.

use super::{
    fsm::Event,
    round::{Outside, feed},
    runner::Runner,
};
use crate::model::VrrpState;

/// Makes the instances of each sync group follow the one that changed last. One that is broken
/// makes all of them fail, and they recover together.
pub(super) fn settle_all(outside: &impl Outside, runners: &mut [Runner]) {
    for first in 0..runners.len() {
        if is_first_of_group(runners, first) {
            settle(outside, runners, first);
        }
    }
    for runner in runners {
        runner.announced = false;
    }
}

fn settle(outside: &impl Outside, runners: &mut [Runner], first: usize) {
    while let Some((index, state)) = next_to_follow(runners, first) {
        feed(outside, &mut runners[index], Event::Follow(state));
    }
    while let Some(index) = next_to_announce(runners, first) {
        runners[index].announced = true;
        runners[index].to_announce = true;
    }
}

/// Whether an instance is the first of its group.
fn is_first_of_group(runners: &[Runner], index: usize) -> bool {
    let group = &runners[index].instance.sync_group;
    group.is_some()
        && runners[..index]
            .iter()
            .all(|other| other.instance.sync_group != *group)
}

/// The members of the group that begins at `first`, with their indexes.
fn members(runners: &[Runner], first: usize) -> impl Iterator<Item = (usize, &Runner)> + Clone {
    let group = &runners[first].instance.sync_group;
    runners
        .iter()
        .enumerate()
        .filter(move |(_, runner)| runner.instance.sync_group == *group)
}

/// A member that is not where its group is, and where that is. Ends after as many steps as there are
/// members.
fn next_to_follow(runners: &[Runner], first: usize) -> Option<(usize, VrrpState)> {
    let all = members(runners, first);
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
fn next_to_announce(runners: &[Runner], first: usize) -> Option<usize> {
    let all = members(runners, first);
    if !all.clone().any(|(_, runner)| runner.announced) {
        return None;
    }
    all.into_iter()
        .find(|(_, runner)| !runner.announced && runner.machine.state() == VrrpState::Master)
        .map(|(index, _)| index)
}
