//! Instances whose name changes in a reload while they run: what the daemon knows of them goes with them.

use std::collections::BTreeMap;

use super::{Daemon, succession::Succession};
use crate::{
    events::Kind,
    model::{RouterId, VrrpState},
};

/// What is to be told of a name that has gone to another instance.
pub(super) struct Change {
    /// What was told of the name last, if there was such an instance.
    told: Option<VrrpState>,
    /// What the instance was when the name came to it.
    state: VrrpState,
}

impl Daemon {
    /// Gives everything that is known by name to the name of now.
    pub(super) fn rename_instances(&mut self, succession: &Succession) -> BTreeMap<String, Change> {
        let known = std::mem::take(&mut self.instances);
        let mut changes = BTreeMap::new();
        for (before, now) in succession.successors() {
            let Some(record) = known.get(before) else {
                continue;
            };
            // One that ends under this name tells of that first.
            let goes_on =
                succession.name(now) != now && succession.is_running(succession.name(now));
            let told = known.get(now).filter(|_| goes_on);
            let change = Change {
                told: told.map(|record| record.state),
                state: record.state,
            };
            changes.insert(now.to_owned(), change);
        }
        let renamed = known.into_iter();
        self.instances = renamed
            .map(|(name, record)| (succession.rename(name), record))
            .collect();
        let resumed = std::mem::take(&mut self.resumed).into_iter();
        self.resumed = resumed.map(|name| succession.rename(name)).collect();
        self.links.rename(succession);
        self.addresses.rename(succession);
        changes
    }

    /// The name of now of an instance that was called `name` when something was reported of it.
    pub(super) fn name_of(&self, router: &RouterId, name: String) -> String {
        let is_it = |name: &str| {
            let record = self.instances.get(name);
            record.is_some_and(|record| record.instance.is_router(router))
        };
        if is_it(&name) {
            return name;
        }
        let other = self.instances.keys().find(|other| is_it(other));
        other.cloned().unwrap_or(name)
    }

    /// Tells of names that have gone to another instance, where the state is news.
    pub(super) async fn tell_of_successors(
        &mut self,
        succession: &Succession,
        changes: BTreeMap<String, Change>,
    ) {
        let Some(vrrp) = &self.vrrp else { return };
        if changes.is_empty() {
            return;
        }
        let snapshots = vrrp.snapshot().await;
        for (name, change) in changes {
            let snapshot = snapshots.iter().find(|snapshot| snapshot.name == name);
            let record = self.instances.get_mut(&name);
            let (Some(snapshot), Some(record)) = (snapshot, record) else {
                continue;
            };
            let text = format!(
                "virtual router {} goes on under this name",
                record.instance.vrid
            );
            if record.state != change.state || change.told == Some(change.state) {
                // Told already, or nothing that others would act on.
                self.event(Kind::Vrrp, &name, text);
                continue;
            }
            record.state = change.told.unwrap_or(VrrpState::Init);
            self.note_transition(&name, change.state, &text, None, snapshot.priority);
        }
        for (before, _) in succession.successors() {
            if let Some(notifier) = &mut self.notifier
                && !self.config.instances.iter().any(|i| i.name == before)
            {
                notifier.forget_instance(before);
            }
        }
    }
}
