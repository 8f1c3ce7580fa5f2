//! What each event leads to.

use std::time::SystemTime;

use super::{Daemon, HealthRecord};
use crate::{
    health::{driver::Change, state::Health},
    model::VrrpState,
    net::interfaces::NetEvent,
    vrrp::{driver::Report, fsm::Reason},
};

impl Daemon {
    pub(super) async fn on_report(&mut self, report: Report) {
        match report {
            Report::Entered {
                instance,
                state,
                reason,
            } => self.on_transition(&instance, state, reason).await,
            Report::Announce { instance } => {
                tracing::info!(
                    instance,
                    "heard a lower priority; announcing the addresses again"
                );
                self.addresses.announce(&instance, &self.interfaces);
            }
            Report::Odd { interface, what } => tracing::warn!(interface, "{what}"),
            Report::Trouble { instance, error } => tracing::error!(instance, "{error}"),
        }
    }

    /// The data plane first: when the addresses are announced it must be ready, and when they are
    /// another's it must have let go.
    async fn on_transition(&mut self, name: &str, state: VrrpState, reason: Reason) {
        let serving = state == VrrpState::Master;
        if let Some(role) = self.roles.of(name) {
            self.data_plane.set_role(role, serving);
        }
        let instance = self
            .config
            .instances
            .iter()
            .find(|i| i.name == name)
            .cloned();
        match &instance {
            Some(instance) if serving => self.addresses.hold(instance, &self.interfaces).await,
            Some(_) | None => self.addresses.release(name).await,
        }
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
        if let Some(record) = self.instances.get_mut(name) {
            record.state = state;
            record.generation = self.switch.generation;
        }
        if let Some(instance) = &instance {
            self.notifier.transition(instance, state);
        }
    }

    pub(super) fn on_health(&mut self, change: Change) {
        let (service, address) = change.subject;
        let Some(record) = self.health.get_mut(&change.subject) else {
            return;
        };
        let lasted = record.since.elapsed().unwrap_or_default().as_secs();
        *record = HealthRecord {
            health: change.health,
            since: SystemTime::now(),
            cause: change.cause.clone(),
        };
        let reason = match change.health {
            Health::Up => format!("{service}: real server {address} is up after {lasted} s"),
            Health::Down => format!(
                "{service}: real server {address} is down after {lasted} s: {}",
                change.cause.unwrap_or_default()
            ),
        };
        tracing::warn!("{reason}");
        if let Err(error) = self.apply(&reason) {
            tracing::error!(%error, "the data plane keeps its last state");
        }
    }

    pub(super) async fn on_net(&mut self, event: NetEvent) {
        let changed = self.interfaces.apply(&event);
        match &event {
            NetEvent::Lost => self.read_everything_again().await,
            NetEvent::Neighbour { address, .. } => {
                if self.neighbours.learn(&event) {
                    let place = self.neighbours.locate(*address, &self.interfaces);
                    self.data_plane.set_neighbour(*address, place);
                }
            }
            NetEvent::Link { .. } | NetEvent::LinkGone { .. } | NetEvent::Address { .. } => {
                if let NetEvent::Address {
                    ifindex,
                    prefix,
                    present: false,
                } = &event
                {
                    self.addresses.restore(*ifindex, *prefix).await;
                }
                if changed.is_some() {
                    self.follow_links();
                    self.find_neighbours().await;
                }
            }
        }
    }

    /// Netlink dropped events: what the kernel has now replaces what was known.
    async fn read_everything_again(&mut self) {
        tracing::warn!("netlink events were lost; reading everything again");
        match self.netlink.dump().await {
            Ok(events) => {
                self.interfaces = crate::net::interfaces::Interfaces::default();
                for event in &events {
                    self.interfaces.apply(event);
                    self.neighbours.learn(event);
                }
                self.follow_links();
                self.find_neighbours().await;
            }
            Err(error) => tracing::error!(error = super::with_sources(&error), "netlink"),
        }
    }

    /// Tells VRRP what became of its interfaces.
    fn follow_links(&self) {
        if let Some(vrrp) = &self.vrrp {
            for instance in &self.config.instances {
                vrrp.link(&instance.interface, self.link_of(instance));
            }
        }
    }

    /// Looks for every real server and tells the data plane.
    pub(super) async fn find_neighbours(&mut self) {
        self.neighbours
            .find_paths(&self.config, &self.netlink)
            .await;
        self.neighbours
            .publish(&self.interfaces, self.data_plane.as_mut());
        self.neighbours.refresh(&self.netlink).await;
    }

    pub(super) async fn on_tick(&mut self) {
        self.addresses.tick(&self.interfaces);
        self.neighbours.refresh(&self.netlink).await;
    }
}
