//! What lies in the host's network stack because of us, and for whom: addresses, routes and rules of
//! masters, and of the host. What was there before, even if it is the same, stays as it was.
//!
//! What the kernel refuses, to add or to remove, is tried again by [`Placed::retry`] until it is done, and is
//! among the [problems](Placed::problems) meanwhile.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use self::kernel::{Kernel, Key};
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

/// Everything that is in place.
pub struct Placed<K = Netlink> {
    kernel: K,
    owners: BTreeMap<Owner, Vec<Entry>>,
    /// What nobody wants and the kernel did not remove, with the reason. No longer than what was in place.
    stuck: Vec<(Key, String)>,
}

impl<K: Kernel> Placed<K> {
    /// Nothing yet.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            owners: BTreeMap::new(),
            stuck: Vec::new(),
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
                    self.place(&mut entry, interfaces).await;
                }
                entries.push(entry);
            }
            if !entries.is_empty() {
                self.owners.insert(owner, entries);
            }
        }
        self.take(&Owner::Former, interfaces).await;
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
        let stuck = self.stuck.iter().map(|(key, _)| key.clone());
        for key in stuck.collect::<Vec<_>>() {
            self.take_away(key, interfaces).await;
        }
        let owners = &self.owners;
        let is_wanted = |key: &Key| owners.values().flatten().any(|e| Key::of(&e.item) == *key);
        self.stuck.retain(|(key, _)| !is_wanted(key));
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
        let stuck = self.stuck.iter().map(|(_, error)| error.clone());
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
                self.take_away(key, interfaces).await;
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
                let is_new = self.mend_one(&mut entry, interfaces).await;
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

    /// Says whether it is there now and was not before.
    async fn mend_one(&self, entry: &mut Entry, interfaces: &Interfaces) -> bool {
        if entry.status == Status::Missing {
            return self.place(entry, interfaces).await;
        }
        let item = &entry.item;
        match self.kernel.add(item, interfaces).await {
            Some(Ok(Placing::Done)) => {
                if entry.status == Status::Ours && entry.refused.is_none() {
                    tracing::warn!("{item} was removed by somebody else; it is put back");
                }
                entry.status = Status::Ours;
                entry.refused = None;
                return true;
            }
            Some(Ok(Placing::Present)) => entry.refused = None,
            Some(Err(error)) => refuse(entry, &error),
            None => {}
        }
        false
    }

    /// Puts something in place that is not. Says whether it is there now and was not before.
    async fn place(&self, entry: &mut Entry, interfaces: &Interfaces) -> bool {
        match self.claim(&entry.item, interfaces).await {
            Ok(Some((status, is_new))) => {
                entry.status = status;
                entry.refused = None;
                is_new
            }
            // It comes with its interface.
            Ok(None) => {
                entry.refused = None;
                false
            }
            Err(error) => {
                refuse(entry, &error);
                false
            }
        }
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
        if self.stuck.iter().any(|(stuck, _)| *stuck == key) {
            return Ok(true);
        }
        self.kernel.is_marked(&key, interfaces).await
    }

    async fn take_all_away(&mut self, entries: Vec<Entry>, interfaces: &Interfaces) {
        for entry in entries.into_iter().rev() {
            let key = Key::of(&entry.item);
            let is_ours = match entry.status {
                Status::Ours => true,
                Status::Theirs => false,
                // It may have been added although the answer was an error, or none.
                Status::Missing => {
                    let marked = self.kernel.is_marked(&key, interfaces);
                    entry.refused.is_some() && marked.await.unwrap_or(false)
                }
            };
            if is_ours {
                self.take_away(key, interfaces).await;
            }
        }
    }

    /// Removes something of ours, unless somebody has it.
    async fn take_away(&mut self, key: Key, interfaces: &Interfaces) {
        let mut others = self.owners.values().flatten();
        if others.any(|other| Key::of(&other.item) == key) {
            return;
        }
        let before = self.stuck.iter().position(|(stuck, _)| *stuck == key);
        if let Err(error) = self.kernel.remove(&key, interfaces).await {
            let error = with_sources(&error);
            if before.is_none() {
                tracing::error!(error, "cannot take something away; trying again");
                self.stuck.push((key, error));
            }
        } else if let Some(at) = before {
            self.stuck.remove(at);
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
