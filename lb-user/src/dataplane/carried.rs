//! Connections on their way from one data plane to the other, in the words of neither. Pure.

use std::{net::SocketAddr, time::Duration};

use crate::model::{ServiceId, Target};

/// A connection, or a client that sticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Carried {
    /// Its service.
    pub service: ServiceId,
    /// Who made it; of a client that sticks, its network, with port 0.
    pub client: SocketAddr,
    /// The port of the VIP; 0 for a client that sticks to a service of all ports.
    pub vip_port: u16,
    /// Its real server.
    pub target: Target,
    /// Whether that is the sorry server.
    pub sorry: bool,
    /// How far it is.
    pub phase: Phase,
    /// Silence that it may last.
    pub left: Duration,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its first packet was seen.
    Opening,
    /// It showed a second one.
    Established,
    /// The client began to end it.
    Closing,
    /// It is one of UDP.
    Datagrams,
    /// It is none, but a client that sticks.
    Sticks,
}

impl Phase {
    /// As `lbctl flows` shows it.
    pub const fn label(self) -> &'static str {
        match self {
            Phase::Opening => "half-open",
            Phase::Established => "established",
            Phase::Closing => "closing",
            Phase::Datagrams => "udp",
            Phase::Sticks => "sticks",
        }
    }
}

impl Carried {
    /// What the kernel counts: whole seconds, at least one.
    pub fn seconds_left(&self) -> u32 {
        u32::try_from(self.left.as_secs())
            .unwrap_or(u32::MAX)
            .max(1)
    }
}
