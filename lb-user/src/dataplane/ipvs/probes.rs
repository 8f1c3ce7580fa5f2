//! Health checks of the VIP on a real server by IPVS, as Seesaw makes them: a service by firewall mark whose only
//! real server is the one that is asked. The probe's socket has the mark and is connected to the VIP; IPVS
//! takes its packets as they leave (LOCAL_OUT), whether the VIP is this host's or not. Pure.
//!
//! These services are lbd's own: they are no part of a plan, and no view shows them.

use std::net::SocketAddr;

use super::{
    codec::{Destination, Forward, Key, Service, flags},
    desired::{self, Wanted},
};
use crate::model::ProbePath;

/// The paths in use.
#[derive(Debug, Default)]
pub struct Probes {
    paths: Vec<ProbePath>,
    interfaces: Vec<String>,
}

impl Probes {
    /// Makes these the paths, whose answers come in on these interfaces. Returns what was before.
    pub fn follow(&mut self, paths: &[ProbePath], interfaces: &[String]) -> Self {
        let new = Self {
            paths: paths.to_vec(),
            interfaces: interfaces.to_vec(),
        };
        std::mem::replace(self, new)
    }

    /// The interfaces that answers come in on, from a VIP that may be this host's.
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The services that IPVS should hold.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        self.paths.iter().map(wanted)
    }

    /// What identifies them in the kernel.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.paths.iter().map(key)
    }

    /// Whether a connection in the kernel's table is a probe's: from one of its path's ports, to the
    /// real server of the path.
    pub fn made(&self, client: SocketAddr, vip: SocketAddr, server: SocketAddr) -> bool {
        let mut paths = self.paths.iter();
        paths.any(|path| {
            let ports = path.ports();
            (path.vip, path.host) == (vip.ip(), server.ip())
                && (ports.first..=ports.last).contains(&client.port())
        })
    }
}

fn key(path: &ProbePath) -> Key {
    Key::Mark {
        mark: path.mark(),
        v6: path.vip.is_ipv6(),
    }
}

fn wanted(path: &ProbePath) -> Wanted {
    Wanted {
        service: Service {
            // There is nothing to choose from; this one is in every kernel that has IPVS.
            scheduler: "rr".to_owned(),
            // A datagram leaves no connection behind that would last for minutes.
            flags: flags::ONE_PACKET,
            ..Service::bare(key(path))
        },
        servers: vec![Destination {
            address: path.host,
            port: 0,
            forward: path.tunnel.map_or(Forward::Route, |_| Forward::Tunnel),
            wrapping: path.tunnel.map(desired::wrapping).unwrap_or_default(),
            weight: 1,
            upper: 0,
            lower: 0,
        }],
        last_weights: vec![0],
        lingering: Vec::new(),
        ordered: false,
    }
}
