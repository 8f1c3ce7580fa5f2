//! What the daemon puts in place, kept in place: after a start, after changes of interfaces, and after
//! removals by others.

use super::{Daemon, placed::Owner};
use crate::{
    dataplane::DataPlane,
    model::network::Item,
    net::{
        netlink::{NetlinkError, watch_removals},
        placing::{Leftovers, marks_addresses},
    },
};

/// What the kernel may not tell of when it is asked.
pub(super) const EVERYTHING: &str = "the state of the network";
pub(super) const PATHS: &str = "the way to real servers";
const LEFTOVERS: &str = "what an earlier daemon left";

impl Daemon {
    /// Goes on where a daemon that died stopped: an instance whose addresses are still here while the
    /// data plane still forwards was its MASTER. Until another master is heard nobody else serves,
    /// and every connection depends on this node. Whatever else was left is removed.
    pub(super) async fn resume(&mut self) {
        let left = self.find_leftovers().await;
        let mut wanted = self.config.statics.clone();
        for instance in self.config.instances.clone() {
            let items = instance.items();
            let holds = items.iter().any(|item| self.is_left(item, &left));
            if holds && self.data_plane.took_over() {
                tracing::warn!(
                    instance = instance.name,
                    "taking over from a daemon that died as MASTER; serving until another master is heard"
                );
                self.addresses.resume(&instance, &self.interfaces).await;
                wanted.extend(items);
                self.resumed.insert(instance.name.clone());
                if let Some(role) = self.roles.of(&instance.name) {
                    self.data_plane.set_role(role, true);
                }
            } else if let Some(device) = &instance.network.virtual_mac {
                self.addresses.virtual_macs.lower(device).await;
            }
        }
        self.addresses
            .placed
            .clear(left, &wanted, &self.interfaces)
            .await;
        self.place_statics().await;
    }

    /// What an earlier daemon left. If the kernel does not tell, nothing is known of it until it does.
    async fn find_leftovers(&mut self) -> Leftovers {
        match self.netlink.leftovers().await {
            Ok(left) => {
                self.untold.remove(LEFTOVERS);
                self.with_unmarked(left)
            }
            Err(error) => {
                self.not_told(LEFTOVERS, &error);
                Leftovers::default()
            }
        }
    }

    /// Remembers a question to which there was no answer, and tells of it once.
    pub(super) fn not_told(&mut self, what: &'static str, error: &NetlinkError) {
        let error = super::with_sources(error);
        if self.untold.insert(what, error.clone()).as_ref() != Some(&error) {
            tracing::error!(error, "{what} is not known; asking again");
        }
    }

    /// Does again what has failed.
    pub(super) async fn try_again(&mut self) {
        if self.untold.contains_key(EVERYTHING) {
            self.read_everything_again().await;
        }
        if self.untold.contains_key(LEFTOVERS) {
            let left = self.find_leftovers().await;
            let placed = &mut self.addresses.placed;
            let wanted = placed.wanted();
            placed.clear(left, &wanted, &self.interfaces).await;
        }
        let instances = &self.config.instances;
        let macs = &self.addresses.virtual_macs;
        match macs.are_complete(instances, &self.interfaces) && !macs.has_others(instances) {
            true => self.addresses.virtual_macs.nothing_is_missing(),
            false => self.follow_interfaces().await,
        }
        self.addresses.retry(&self.interfaces).await;
    }

    /// Before Linux 5.18 addresses have no mark: virtual ones that are there are taken for left over,
    /// except the owner's, which are the interface's real ones.
    fn with_unmarked(&self, mut left: Leftovers) -> Leftovers {
        if marks_addresses() {
            return left;
        }
        for instance in self.config.instances.iter().filter(|i| i.priority != 255) {
            for prefix in instance.held() {
                let device = self.interfaces.by_name(&instance.placed(*prefix).device);
                let present = device.filter(|device| device.addresses.contains(prefix));
                left.addresses
                    .extend(present.map(|device| (device.ifindex, *prefix)));
            }
        }
        left
    }

    /// Whether something is an address that was left.
    fn is_left(&self, item: &Item, left: &Leftovers) -> bool {
        let Item::Address(address) = item else {
            return false;
        };
        let device = self.interfaces.by_name(&address.device);
        device.is_some_and(|d| left.addresses.contains(&(d.ifindex, address.prefix)))
    }

    /// Puts in place what is there whoever is master.
    pub(super) async fn place_statics(&mut self) {
        let statics = self.config.statics.clone();
        let placed = &mut self.addresses.placed;
        let wanted = vec![(Owner::Host, statics)];
        placed.put(wanted, &self.interfaces).await;
    }

    /// Follows interfaces that came, went or changed.
    pub(super) async fn follow_interfaces(&mut self) {
        // What fails is told of, and tried again.
        let _ = self.make_virtual_macs(true).await;
        self.attach();
        self.follow_own_addresses();
        self.put_back().await;
    }

    /// Runs the program on interfaces that were made again since.
    pub(super) fn attach(&mut self) {
        let present: Vec<(String, u32)> = self
            .config
            .dataplane
            .interfaces
            .iter()
            .filter_map(|name| self.interfaces.by_name(name))
            .map(|interface| (interface.name.clone(), interface.ifindex))
            .collect();
        self.data_plane.follow_interfaces(&present);
        // XDP may be lost by that.
        self.watch_data_plane();
    }

    /// Puts back what was removed by others.
    pub(super) async fn put_back(&mut self) {
        self.addresses.restore_all(&self.interfaces).await;
        self.follow_accept_mode();
    }

    /// Makes the interfaces of virtual MAC addresses. `clean`: removes those that the configuration
    /// does not need.
    pub(super) async fn make_virtual_macs(&mut self, clean: bool) -> Result<(), NetlinkError> {
        let instances = &self.config.instances;
        let macs = &mut self.addresses.virtual_macs;
        if macs.are_complete(instances, &self.interfaces) && !(clean && macs.has_others(instances))
        {
            return Ok(());
        }
        if macs.follow(instances, &self.interfaces, !clean).await? {
            match self.netlink.dump().await {
                Ok(events) => events.iter().for_each(|event| {
                    self.interfaces.apply(event);
                }),
                Err(error) => {
                    self.not_told(EVERYTHING, &error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Begins to watch routes and rules, if there are any to keep in place. Other hosts' tables can
    /// be large and busy: whoever needs no watch has none.
    pub(super) fn watch_routes(&mut self) {
        let instances = &self.config.instances;
        let needed = instances.iter().flat_map(crate::model::Instance::items);
        let mut needed = needed.chain(self.config.statics.iter().cloned());
        if !needed.any(|item| !matches!(item, Item::Address(_))) {
            return;
        }
        let Some(sender) = self.removals.take() else {
            return;
        };
        if let Err(error) = watch_removals(sender.clone()) {
            tracing::warn!(
                error = super::with_sources(&error),
                "routes and rules that somebody removes are put back late"
            );
            self.removals = Some(sender);
        }
    }
}
