//! What each event leads to.

use std::net::IpAddr;

use tokio::sync::mpsc::Receiver;

use super::{
    Daemon,
    placing::{EVERYTHING, PATHS},
};
use crate::{
    dataplane::DataPlane,
    events::Kind,
    model::{Instance, VrrpState},
    net::{announcing::Occasion, interfaces::NetEvent, netlink::NetlinkError},
    vrrp::{driver::Report, fsm::Reason},
};

impl Daemon {
    pub(super) async fn on_report(&mut self, report: Report) {
        match report {
            Report::Entered {
                instance,
                router,
                state,
                reason,
                priority,
            } => {
                let instance = self.name_of(&router, instance);
                if (state, reason) == (VrrpState::Backup, Reason::Started)
                    && self.resumed.contains(&instance)
                {
                    let reason = "started, still serving";
                    self.note_transition(&instance, state, reason, None, priority);
                    return;
                }
                let peer = reason.peer();
                self.on_transition(&instance, state, &reason.to_string(), peer, priority)
                    .await;
                if reason == Reason::Stopped
                    && !self.config.instances.iter().any(|i| i.name == instance)
                {
                    self.instances.remove(&instance);
                }
            }
            Report::Announce { instance, router } => {
                let instance = self.name_of(&router, instance);
                // One that does not yield speaks up every 10 ms; the events tell of it.
                tracing::debug!(
                    instance,
                    "heard a lower priority; announcing the addresses again"
                );
                self.addresses
                    .announce(&instance, Occasion::LowerPriority, &self.interfaces);
            }
            Report::NotRealtime(error) => {
                let what = "VRRP runs without real-time priority and locked memory; adverts may be late when this machine is busy";
                tracing::warn!(error, "{what}");
                self.event(Kind::Daemon, "", format!("{what}: {error}"));
            }
            Report::Trouble { instance, error } => {
                tracing::error!(instance, "{error}");
                self.event(Kind::Vrrp, &instance, error);
            }
        }
    }

    /// A new master's data plane is ready before its addresses are announced. One that yields or stops
    /// gives its addresses up first: while it had them without forwarding, its own stack would answer
    /// and reset connections.
    pub(super) async fn on_transition(
        &mut self,
        name: &str,
        state: VrrpState,
        reason: &str,
        peer: Option<IpAddr>,
        priority: u8,
    ) {
        self.resumed.remove(name);
        let role = self.roles.of(name);
        let instance = self
            .instances
            .get(name)
            .map(|record| record.instance.clone());
        match (state, &instance) {
            (VrrpState::Master, Some(instance)) => {
                self.set_role(role, true);
                self.addresses.hold(instance, &self.interfaces).await;
            }
            (VrrpState::Backup | VrrpState::Fault | VrrpState::Init, _)
            | (VrrpState::Master, None) => {
                self.addresses.release(name, &self.interfaces).await;
                self.set_role(role, false);
            }
        }
        self.note_transition(name, state, reason, peer, priority);
    }

    /// Log, record, event and scripts.
    pub(super) fn note_transition(
        &mut self,
        name: &str,
        state: VrrpState,
        reason: &str,
        peer: Option<IpAddr>,
        priority: u8,
    ) {
        let instance = self
            .instances
            .get(name)
            .map(|record| record.instance.clone());
        let serving = state == VrrpState::Master || self.resumed.contains(name);
        let before = self
            .instances
            .get(name)
            .map_or(VrrpState::Init, |record| record.state);
        tracing::info!(
            instance = name,
            generation = self.switch.generation,
            data_plane = if serving { "serving" } else { "passing" },
            "{before} -> {state}: {reason}"
        );
        self.event_with_peer(
            Kind::Vrrp,
            name,
            format!("{before} -> {state}: {reason}"),
            peer,
        );
        if let Some(record) = self.instances.get_mut(name) {
            record.state = state;
            record.generation = self.switch.generation;
        }
        self.follow_role_with_checks(name);
        self.follow_probe_style();
        if let (Some(instance), Some(notifier)) = (&instance, &mut self.notifier) {
            notifier.transition(instance, state, priority);
        }
    }

    fn set_role(&mut self, role: Option<u16>, serving: bool) {
        if let Some(role) = role {
            self.data_plane.set_role(role, serving);
        }
    }

    /// Applies; a data plane that refuses keeps its last state, and the next tick tries again.
    pub(super) fn apply_or_stay(&mut self, reason: &str) {
        if let Err(error) = self.apply(reason) {
            tracing::error!(%error, "the data plane keeps its last state for now");
        }
    }

    pub(super) async fn on_net(&mut self, event: NetEvent) {
        let before = match &event {
            NetEvent::Link { ifindex, .. } => self.interfaces.by_index(*ifindex).map(|i| i.mac),
            _ => None,
        };
        let changed = self.interfaces.apply(&event);
        match &event {
            NetEvent::Lost => {
                tracing::warn!("netlink events were lost; reading everything again");
                self.read_everything_again().await;
            }
            NetEvent::Neighbour { address, .. } => {
                let hosts = self.neighbours.learn(&event);
                for host in &hosts {
                    let place = self.neighbours.locate(*host, &self.interfaces);
                    self.data_plane.set_neighbour(*host, place);
                }
                if !hosts.is_empty() {
                    let known = self.neighbours.locate(hosts[0], &self.interfaces).is_some();
                    let word = if known { "is found" } else { "cannot be found" };
                    self.apply_or_stay(&format!("{address} {word} on the network"));
                }
            }
            NetEvent::Address {
                ifindex,
                prefix,
                present,
            } => {
                if !present {
                    self.addresses
                        .restore(*ifindex, *prefix, &self.interfaces)
                        .await;
                }
                let holders = || {
                    let holds = |i: &&Instance| i.held().any(|held| held == prefix);
                    self.config.instances.iter().filter(holds)
                };
                let ours = holders().next().is_some();
                // Adverts come from no virtual address, but those of an owner are its own. With 255
                // instances a failover brings 255 of these events.
                let is_source = !ours || holders().any(|i| i.priority == 255);
                if changed.is_some() && is_source {
                    self.follow_links();
                }
                if changed.is_some() {
                    // Our own addresses lead to no new place.
                    if !ours {
                        self.find_neighbours_and_apply().await;
                    }
                }
            }
            NetEvent::Link { .. } | NetEvent::LinkGone { .. } => {
                if let NetEvent::Link { name, mac, .. } = &event
                    && before.is_some_and(|before| before != *mac)
                {
                    self.announce_macs(std::slice::from_ref(name));
                }
                if changed.is_some() {
                    self.follow_interfaces().await;
                    self.follow_links();
                    self.find_neighbours_and_apply().await;
                }
            }
        }
    }

    /// These interfaces have other MAC addresses now. The data plane knows them before clients do.
    fn announce_macs(&mut self, interfaces: &[String]) {
        if interfaces.is_empty() {
            return;
        }
        self.follow_own_addresses();
        for interface in interfaces {
            self.addresses.announce_anew(interface, &self.interfaces);
        }
    }

    /// Tells the data plane which frames are for this host.
    pub(super) fn follow_own_addresses(&mut self) {
        let names = &self.config.dataplane.interfaces;
        let (macs, vlans) = (
            self.interfaces.own_macs(names),
            self.interfaces.own_vlans(names),
        );
        self.data_plane.set_own_addresses(&macs, &vlans);
        let named = names
            .iter()
            .filter_map(|name| self.interfaces.by_name(name));
        let largest = named.map(|interface| interface.place.mtu).max();
        self.data_plane.set_receive_mtu(largest.unwrap_or_default());
    }

    /// What the kernel has now replaces what was known.
    pub(super) async fn read_everything_again(&mut self) {
        match self.netlink.dump().await {
            Ok(events) => {
                self.untold.remove(EVERYTHING);
                let before = std::mem::take(&mut self.interfaces);
                self.neighbours.forget();
                for event in &events {
                    self.interfaces.apply(event);
                    self.neighbours.learn(event);
                }
                let changed = self.interfaces.changed_macs(&before);
                self.announce_macs(&changed);
                self.follow_interfaces().await;
                self.follow_links();
                self.find_neighbours_and_apply().await;
            }
            Err(error) => self.not_told(EVERYTHING, &error),
        }
    }

    async fn find_neighbours_and_apply(&mut self) {
        self.find_neighbours().await;
        self.reconsider_checks();
        self.apply_or_stay("paths to real servers changed");
    }

    /// Looks for every real server and tells the data plane.
    pub(super) async fn find_neighbours(&mut self) {
        let found = self
            .neighbours
            .find_paths(&self.config, &self.netlink)
            .await;
        if self.note_paths(&found) {
            self.neighbours.refresh(&self.netlink).await;
        }
    }

    /// Tells the data plane where real servers are. Says whether the kernel told the way to all.
    pub(super) fn note_paths(&mut self, found: &Result<(), NetlinkError>) -> bool {
        match found {
            Ok(()) => drop(self.untold.remove(PATHS)),
            Err(error) => self.not_told(PATHS, error),
        }
        self.neighbours
            .publish(&self.interfaces, &mut self.data_plane);
        found.is_ok()
    }

    pub(super) async fn on_tick(&mut self, reports: &mut Receiver<Report>) {
        self.remember();
        self.attach();
        if self.neighbours.is_due() {
            self.put_back().await;
            // Routes change without telling.
            self.find_neighbours_and_apply().await;
        } else {
            self.neighbours.refresh(&self.netlink).await;
        }
        self.try_again().await;
        if self.behind {
            self.apply_or_stay("retry");
        }
        self.follow_links();
        self.catch_up(reports).await;
    }

    /// Repairs what a lost report left behind: the VRRP thread drops reports when the daemon is too
    /// slow to take them.
    async fn catch_up(&mut self, reports: &mut Receiver<Report>) {
        while let Ok(report) = reports.try_recv() {
            self.on_report(report).await;
        }
        let Some(vrrp) = &self.vrrp else { return };
        let snapshots = vrrp.snapshot().await;
        self.note_oddities(&snapshots);
        if !reports.is_empty() {
            // Something happened in between and will be handled as it was reported.
            return;
        }
        for snapshot in &snapshots {
            if snapshot.peer.is_some()
                && self.resumed.remove(&snapshot.name)
                && snapshot.state == VrrpState::Backup
            {
                tracing::info!(
                    instance = snapshot.name,
                    "another master is heard; no longer serving for the daemon before"
                );
                self.addresses
                    .release(&snapshot.name, &self.interfaces)
                    .await;
                let role = self.roles.of(&snapshot.name);
                self.set_role(role, false);
            }
        }
        for snapshot in snapshots {
            let known = self
                .instances
                .get(&snapshot.name)
                .map(|record| record.state);
            if known.is_some_and(|state| state != snapshot.state) {
                tracing::error!(
                    instance = snapshot.name,
                    "a transition was not reported; following it now"
                );
                let priority = snapshot.priority;
                self.on_transition(
                    &snapshot.name,
                    snapshot.state,
                    &snapshot.reason,
                    None,
                    priority,
                )
                .await;
            }
        }
    }
}
