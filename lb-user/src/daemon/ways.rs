//! The ways by which health checks come to a VIP on one real server: which there are, and when they change.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use super::Daemon;
use crate::{dataplane::DataPlane, health::plan::Job, model::ProbeStyle};

/// How a check would come to the VIP on a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WayToVip {
    /// Whether the data plane's programs see its packets.
    seen: bool,
    /// How they get there.
    style: Option<ProbeStyle>,
    /// The address that they should come from.
    source: Option<IpAddr>,
}

impl Daemon {
    /// Starts checks anew whose way to the real server is another one now.
    pub(super) fn reconsider_checks(&mut self) {
        if self.ways_to_vips() != self.led {
            self.start_checks();
        }
    }

    /// Starts checks anew where the data plane has another way to the VIPs now, or none.
    pub(super) fn follow_probe_style(&mut self) {
        let style = self.data_plane.probe_style();
        // It is the same for all.
        let is_old = |way: &WayToVip| way.style != style;
        if self.led.values().next().is_some_and(is_old) {
            self.start_checks();
        }
    }

    /// For every VIP and real server: whether the data plane sees what is sent there, and from which
    /// address that should be.
    fn ways_to_vips(&self) -> BTreeMap<(IpAddr, IpAddr), WayToVip> {
        let on_data_plane = |index: u32| {
            let mut interfaces = self.config.dataplane.interfaces.iter();
            interfaces.any(|name| {
                let interface = self.interfaces.by_name(name);
                interface.is_some_and(|interface| interface.ifindex == index)
            })
        };
        let services = self.config.services.iter();
        let vips: HashSet<IpAddr> = services.map(|service| service.id.address).collect();
        let is_virtual = |address: IpAddr| vips.contains(&address);
        let style = self.data_plane.probe_style();
        let way = |vip: IpAddr, host: IpAddr| {
            let carrier = self.neighbours.carrier(host, &self.interfaces);
            let source = self.interfaces.beside(host, is_virtual);
            let seen = match (style, carrier) {
                (None, _) | (_, Some(None)) => false,
                // Most likely where everybody is; it is looked at again when the way is known.
                (Some(ProbeStyle::Rewritten), None) => true,
                (Some(ProbeStyle::Rewritten), Some(Some(carrier))) => on_data_plane(carrier),
                // The kernel needs a route to the VIP before IPVS sees a packet, and would take the VIP
                // for the source where it has it.
                (Some(ProbeStyle::Scheduled), _) => {
                    source.is_some() && self.interfaces.beside(vip, is_virtual).is_some()
                }
            };
            WayToVip {
                seen,
                style,
                source,
            }
        };
        let services = self.config.services.iter();
        let pairs = services.flat_map(|service| {
            let vip = service.id.address;
            service.hosts().map(move |host| (vip, host))
        });
        pairs
            .map(|(vip, host)| ((vip, host), way(vip, host)))
            .collect()
    }

    /// Lets checks ask for the VIP on the real server, where the data plane can do that.
    pub(super) fn lead_to_vips(&mut self, jobs: &mut Vec<Job>) {
        let at_home = jobs.clone();
        self.led = self.ways_to_vips();
        let way = |vip: IpAddr, host: IpAddr| self.led.get(&(vip, host)).copied();
        let style = self.data_plane.probe_style();
        let paths = self.paths.lead(
            &self.config,
            jobs,
            style.unwrap_or(ProbeStyle::Rewritten),
            |vip, host| way(vip, host).is_some_and(|way| way.seen),
            |vip, host| way(vip, host)?.source,
        );
        let sources = paths.iter().filter_map(|p| way(p.vip, p.host)?.source);
        let interfaces = self.interfaces.having(&sources.collect());
        if let Err(error) = self.data_plane.set_probes(&paths, &interfaces) {
            tracing::debug!(%error, "checks ask the real servers' own addresses");
            *jobs = at_home;
        }
    }
}
