//! What lies in the host's network stack because of us, and for whom: addresses, routes and rules of
//! masters, and of the host. What was there before, even if it is the same, stays as it was.
//!
//! What the kernel refuses, to add or to remove, is tried again by [`Placed::retry`] until it is done, and is
//! among the [problems](Placed::problems) meanwhile. What it does not answer may have been carried out all the
//! same: the mark tells, when the kernel answers again.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use self::kernel::{Answered, Kernel, Key};
use super::{succession::Succession, with_sources};
use crate::{
    model::network::{Item, PlacedAddress},
    net::{
        interfaces::Interfaces,
        netlink::{Netlink, NetlinkError},
        placing::{Leftovers, Placing},
    },
};

/// For whom something is in place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Whoever is master: `[[static_address]]` and the like.
    Host,
    /// An instance that is master.
    Instance(String),
    /// Nobody any more: what is about to be taken away.
    Former,
}

/// How something that an owner wants lies in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Because of us: it is taken away again.
    Ours,
    /// It was there already: it stays.
    Theirs,
    /// Not there: its interface is missing, or the kernel refused.
    Missing,
}

#[derive(Clone, Debug)]
struct Entry {
    item: Item,
    status: Status,
    /// Why the kernel refused it at the last attempt.
    refused: Option<String>,
}

/// What nobody wants and may still be there.
#[derive(Debug)]
struct Stuck {
    key: Key,
    /// Whether it is there because of us; if that is not known, the mark has to tell.
    is_ours: bool,
    /// Why it was not removed at the last attempt.
    error: String,
}

/// Everything that is in place.
pub struct Placed<K = Netlink> {
    kernel: K,
    owners: BTreeMap<Owner, Vec<Entry>>,
    /// No longer than what was in place.
    stuck: Vec<Stuck>,
    /// The kernel left a request unanswered: nothing more is asked of it but noted as failed, because every request
    /// would keep the daemon waiting as long. This says when it answers again; [`Placed::retry`] asks in any case.
    silence: Option<Answered>,
}

impl<K: Kernel> Placed<K> {
    /// Nothing yet.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            owners: BTreeMap::new(),
            stuck: Vec::new(),
            silence: None,
        }
    }

    /// Follows instances that are called otherwise now.
    pub fn rename(&mut self, names: &Succession) {
        let before = std::mem::take(&mut self.owners).into_iter();
        let renamed = before.map(|(owner, entries)| match owner {
            Owner::Instance(name) => (Owner::Instance(names.rename(name)), entries),
            Owner::Host | Owner::Former => (owner, entries),
        });
        self.owners = renamed.collect();
    }

    /// Puts in place what owners want from now on, in this order, and then takes away what they do not
    /// want any more: what one gives to another is there all the time.
    pub async fn put(&mut self, wanted: Vec<(Owner, Vec<Item>)>, interfaces: &Interfaces) {
        let mut former = Vec::new();
        for (owner, items) in &wanted {
            let before = self.owners.remove(owner).unwrap_or_default();
            let (stay, go): (Vec<_>, Vec<_>) = before
                .into_iter()
                .partition(|entry| items.contains(&entry.item));
            self.owners.insert(owner.clone(), stay);
            former.extend(go);
        }
        // The kernel has one route of a key, and one IPv6 address of any length: the old one first.
        let new = wanted.iter().flat_map(|(_, items)| items);
        let (replaced, former): (Vec<_>, Vec<_>) = former
            .into_iter()
            .partition(|old| new.clone().any(|item| excludes(&old.item, item)));
        self.take_all_away(replaced, interfaces).await;
        self.owners.insert(Owner::Former, former);
        for (owner, items) in wanted {
            let mut before = self.owners.remove(&owner).unwrap_or_default();
            let mut entries = Vec::with_capacity(items.len());
            for item in items {
                let known = before.iter().position(|old| old.item == item);
                let mut entry = known.map_or_else(
                    || Entry {
                        item,
                        status: Status::Missing,
                        refused: None,
                    },
                    |at| before.remove(at),
                );
                if entry.status == Status::Missing {
                    self.look_after(&mut entry, interfaces).await;
                }
                entries.push(entry);
            }
            if !entries.is_empty() {
                self.owners.insert(owner, entries);
            }
        }
        if let Some(former) = self.owners.remove(&Owner::Former) {
            self.take_all_away(former, interfaces).await;
        }
    }

    /// Whether an owner wants this by now.
    pub fn has(&self, owner: &Owner, item: &Item) -> bool {
        let entries = self.owners.get(owner);
        entries.is_some_and(|entries| entries.iter().any(|entry| entry.item == *item))
    }

    /// Takes away what an owner had, in the reverse order, except what another has by now.
    pub async fn take(&mut self, owner: &Owner, interfaces: &Interfaces) {
        if let Some(entries) = self.owners.remove(owner) {
            self.take_all_away(entries, interfaces).await;
        }
    }

    /// Takes everything away. There is no other time: all of it is asked for, whether the kernel answers or not.
    pub async fn take_everything(&mut self, interfaces: &Interfaces) {
        while let Some((_, entries)) = self.owners.pop_last() {
            self.silence = None;
            self.take_all_away(entries, interfaces).await;
        }
        for key in self.stuck_keys() {
            self.silence = None;
            self.free(key, interfaces).await;
        }
    }

    /// Takes over what is in place already because of the daemon before this one.
    pub fn adopt(&mut self, owner: &Owner, items: Vec<Item>) {
        let entries = items.into_iter().map(|item| Entry {
            item,
            status: Status::Ours,
            refused: None,
        });
        self.owners.insert(owner.clone(), entries.collect());
    }

    /// Puts back what somebody else has removed, and what could not be put in place before. With
    /// `only`, looks at addresses of this kind and no others. Returns the instances that have an address again.
    pub async fn restore(
        &mut self,
        only: Option<&PlacedAddress>,
        interfaces: &Interfaces,
    ) -> BTreeSet<String> {
        let concerns = |entry: &Entry| match (&entry.item, only) {
            (_, None) => true,
            (Item::Address(a), Some(only)) => (a.prefix, &a.device) == (only.prefix, &only.device),
            (Item::Route(_) | Item::Rule(_), Some(_)) => false,
        };
        self.mend(concerns, interfaces).await
    }

    /// Tries again what has failed. Returns the instances that have an address now.
    pub async fn retry(&mut self, interfaces: &Interfaces) -> BTreeSet<String> {
        self.silence = None;
        for key in self.stuck_keys() {
            self.free(key, interfaces).await;
        }
        let owners = &self.owners;
        let is_wanted = |key: &Key| owners.values().flatten().any(|e| Key::of(&e.item) == *key);
        self.stuck.retain(|stuck| !is_wanted(&stuck.key));
        let failed = |entry: &Entry| entry.status == Status::Missing || entry.refused.is_some();
        self.mend(failed, interfaces).await
    }

    /// What is wanted and not there, and what is there and not wanted, in words.
    pub fn problems(&self) -> Vec<String> {
        let entries = self.owners.values().flatten();
        let missing = entries.filter_map(|entry| match (&entry.refused, entry.status) {
            (Some(error), _) => Some(error.clone()),
            (None, Status::Missing) => Some(format!(
                "{} is not in place: its interface is not there",
                entry.item
            )),
            (None, Status::Ours | Status::Theirs) => None,
        });
        let stuck = self.stuck.iter().map(|stuck| stuck.error.clone());
        missing.chain(stuck).collect()
    }

    /// Everything that somebody wants.
    pub fn wanted(&self) -> Vec<Item> {
        let entries = self.owners.values().flatten();
        entries.map(|entry| entry.item.clone()).collect()
    }

    /// Removes what an earlier daemon left, unless somebody wants it. What is wanted is ours from
    /// now on.
    pub async fn clear(&mut self, left: Leftovers, wanted: &[Item], interfaces: &Interfaces) {
        let rules = left.rules.into_iter().map(Key::Rule);
        let routes = left.routes.into_iter().map(Key::Route);
        let addresses = left.addresses.into_iter().filter_map(|(index, prefix)| {
            let device = interfaces.by_index(index)?.name.clone();
            Some(Key::Address(device, prefix))
        });
        for key in rules.chain(routes).chain(addresses) {
            if !wanted.iter().any(|item| Key::of(item) == key) {
                tracing::warn!("removing {key}, left from before");
                self.take_away(key, true, interfaces).await;
            }
        }
    }

    /// Looks after some of what is wanted.
    async fn mend(
        &mut self,
        concerns: impl Fn(&Entry) -> bool,
        interfaces: &Interfaces,
    ) -> BTreeSet<String> {
        let mut again = BTreeSet::new();
        let owners: Vec<Owner> = self.owners.keys().cloned().collect();
        for owner in owners {
            for at in 0..self.owners[&owner].len() {
                let mut entry = self.owners[&owner][at].clone();
                if !concerns(&entry) {
                    continue;
                }
                let is_new = self.look_after(&mut entry, interfaces).await;
                if let (true, Item::Address(_), Owner::Instance(name)) =
                    (is_new, &entry.item, &owner)
                {
                    again.insert(name.clone());
                }
                if let Some(place) = self.owners.get_mut(&owner).and_then(|all| all.get_mut(at)) {
                    *place = entry;
                }
            }
        }
        again
    }

    /// Puts something in place that is not, and notes what comes of it. Says whether it is there now and was
    /// not before.
    async fn look_after(&mut self, entry: &mut Entry, interfaces: &Interfaces) -> bool {
        if self.is_silent() {
            let item = &entry.item;
            let words = || format!("{item} may not be in place: the kernel does not answer");
            entry.refused.get_or_insert_with(words);
            return false;
        }
        match self.mend_one(entry, interfaces).await {
            Ok(is_new) => is_new,
            Err(error) => {
                self.heed(&error);
                refuse(entry, &error);
                false
            }
        }
    }

    async fn mend_one(
        &self,
        entry: &mut Entry,
        interfaces: &Interfaces,
    ) -> Result<bool, NetlinkError> {
        let item = &entry.item;
        if entry.status == Status::Missing {
            let claimed = self.claim(item, interfaces).await?;
            entry.refused = None;
            // Otherwise it comes with its interface.
            return Ok(claimed.is_some_and(|(status, is_new)| {
                entry.status = status;
                is_new
            }));
        }
        let Some(placing) = self.kernel.add(item, interfaces).await.transpose()? else {
            return Ok(false);
        };
        let is_new = placing == Placing::Done;
        if is_new {
            if entry.status == Status::Ours && entry.refused.is_none() {
                tracing::warn!("{item} was removed by somebody else; it is put back");
            }
            entry.status = Status::Ours;
        }
        entry.refused = None;
        Ok(is_new)
    }

    /// Adds something, or finds out whose it is. Says too whether it was not there before; `None` when its
    /// interface is missing.
    async fn claim(
        &self,
        item: &Item,
        interfaces: &Interfaces,
    ) -> Result<Option<(Status, bool)>, NetlinkError> {
        let Some(placing) = self.kernel.add(item, interfaces).await.transpose()? else {
            return Ok(None);
        };
        if placing == Placing::Done {
            return Ok(Some((Status::Ours, true)));
        }
        if self.is_ours(item, interfaces).await? {
            self.kernel.renew(item, interfaces).await?;
            return Ok(Some((Status::Ours, false)));
        }
        tracing::warn!("{item} was there before, or something that excludes it; it stays as it is");
        Ok(Some((Status::Theirs, false)))
    }

    /// Whether something that is in the kernel is there because of us: another owner has it, it should have
    /// gone, or it bears our mark.
    async fn is_ours(&self, item: &Item, interfaces: &Interfaces) -> Result<bool, NetlinkError> {
        let key = Key::of(item);
        let same = |entry: &&Entry| Key::of(&entry.item) == key && entry.status != Status::Missing;
        if let Some(other) = self.owners.values().flatten().find(same) {
            return Ok(other.status == Status::Ours);
        }
        if self
            .stuck
            .iter()
            .any(|stuck| stuck.is_ours && stuck.key == key)
        {
            return Ok(true);
        }
        self.kernel.is_marked(&key, interfaces).await
    }

    async fn take_all_away(&mut self, entries: Vec<Entry>, interfaces: &Interfaces) {
        for entry in entries.into_iter().rev() {
            let is_ours = match entry.status {
                Status::Ours => true,
                Status::Theirs => continue,
                // It may have been added although the answer was an error, or none.
                Status::Missing if entry.refused.is_some() => false,
                Status::Missing => continue,
            };
            self.take_away(Key::of(&entry.item), is_ours, interfaces)
                .await;
        }
    }

    fn is_silent(&mut self) -> bool {
        self.silence.take_if(|answered| answered());
        self.silence.is_some()
    }

    fn heed(&mut self, error: &NetlinkError) {
        if error.is_no_answer() {
            self.silence = Some(self.kernel.listen());
        }
    }

    fn stuck_keys(&self) -> Vec<Key> {
        self.stuck.iter().map(|stuck| stuck.key.clone()).collect()
    }

    /// Tries again to remove something that is stuck.
    async fn free(&mut self, key: Key, interfaces: &Interfaces) {
        let is_ours = self.stuck.iter().any(|s| s.is_ours && s.key == key);
        self.take_away(key, is_ours, interfaces).await;
    }

    /// Removes something that is ours, or that bears our mark, unless somebody has it. If the kernel does not
    /// do so, or does not tell whose it is, it is stuck.
    async fn take_away(&mut self, key: Key, is_ours: bool, interfaces: &Interfaces) {
        let mut others = self.owners.values().flatten();
        if others.any(|other| Key::of(&other.item) == key) {
            return;
        }
        if self.is_silent() {
            let error = format!("{key} is not removed: the kernel does not answer");
            self.keep_stuck(key, is_ours, error);
            return;
        }
        match self.remove(&key, is_ours, interfaces).await {
            Ok(()) => self.stuck.retain(|stuck| stuck.key != key),
            Err(error) => {
                self.heed(&error);
                self.keep_stuck(key, is_ours, with_sources(&error));
            }
        }
    }

    fn keep_stuck(&mut self, key: Key, is_ours: bool, error: String) {
        if let Some(known) = self.stuck.iter_mut().find(|stuck| stuck.key == key) {
            known.is_ours |= is_ours;
            known.error = error;
            return;
        }
        tracing::error!(error, "cannot take something away; trying again");
        self.stuck.push(Stuck {
            key,
            is_ours,
            error,
        });
    }

    async fn remove(
        &self,
        key: &Key,
        is_ours: bool,
        interfaces: &Interfaces,
    ) -> Result<(), NetlinkError> {
        // Requests are carried out in their order: one without an answer has been when this is answered.
        match is_ours || self.kernel.is_marked(key, interfaces).await? {
            true => self.kernel.remove(key, interfaces).await,
            false => Ok(()),
        }
    }
}

/// Whether the kernel can have only one of two that differ.
fn excludes(old: &Item, new: &Item) -> bool {
    if old == new {
        return false;
    }
    match (old, new) {
        (Item::Address(a), Item::Address(b)) if a.prefix.address.is_ipv6() => {
            (a.prefix.address, &a.device) == (b.prefix.address, &b.device)
        }
        _ => Key::of(old) == Key::of(new),
    }
}

fn refuse(entry: &mut Entry, error: &NetlinkError) {
    let error = with_sources(error);
    if entry.refused.as_ref() != Some(&error) {
        tracing::error!(error, "cannot put something in place; trying again");
    }
    entry.refused = Some(error);
}

#[cfg(test)]
mod tests;
