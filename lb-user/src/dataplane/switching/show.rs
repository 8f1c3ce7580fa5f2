//! What is shown of the two.

use serde::{Deserialize, Serialize};

use super::{Kind, Order, Planes};
use crate::dataplane::Snapshot;

/// How the data planes take over from each other.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Switching {
    /// What an operator ordered: "xdp" or "ipvs".
    pub ordered: Option<String>,
    /// Whether IPVS takes over when XDP is lost.
    pub ready: bool,
    /// Why it would not, where XDP forwards.
    pub obstacle: Option<String>,
    /// Why it may not be able to, where that is known before.
    #[serde(default)]
    pub lacking: Option<String>,
    /// Why this host's own stack would reset connections until IPVS has taken over, if it would.
    #[serde(default)]
    pub unguarded: Option<String>,
    /// Connections are still coming from IPVS to XDP.
    pub settling: bool,
    /// How often XDP took over from IPVS since the start.
    pub to_xdp: u64,
    /// How often IPVS took over from XDP since the start.
    pub to_ipvs: u64,
    /// Milliseconds until XDP is tried again, where it will be.
    pub retry_in_ms: Option<u64>,
    /// Why it could not be had the last time.
    pub refusal: Option<String>,
    /// The last time that one took over from the other.
    pub last: Option<LastSwitch>,
}

/// The last time that one data plane took over from the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastSwitch {
    /// "xdp" or "ipvs".
    pub to: String,
    /// Why.
    pub reason: String,
    /// Seconds since.
    pub ago_s: u64,
    /// Microseconds from the moment when that was known until it forwarded.
    pub took_us: u64,
    /// Connections and clients that stick that it was given.
    pub connections: u64,
}

impl Planes {
    pub(super) fn show(&mut self) -> Switching {
        let obstacle = self.fallback().err();
        let is_xdp = self.forwarding() == Kind::Xdp;
        let retry = self.retry_in();
        let ready = is_xdp && obstacle.is_none();
        let ipvs = self.pair.ipvs().filter(|_| ready);
        let lacking = ipvs.and_then(|ipvs| ipvs.lacks_for(&self.plan));
        Switching {
            ordered: match self.order {
                Order::Auto => None,
                Order::Only(kind) => Some(kind.label().to_owned()),
            },
            ready,
            lacking,
            obstacle: obstacle.filter(|_| is_xdp),
            unguarded: None,
            settling: self.settling.is_some(),
            to_xdp: self.turns[Kind::Xdp as usize],
            to_ipvs: self.turns[Kind::Ipvs as usize],
            retry_in_ms: retry.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            refusal: self.refusal.clone(),
            last: self.last.as_ref().map(|turn| LastSwitch {
                to: turn.to.label().to_owned(),
                reason: turn.reason.clone(),
                ago_s: turn.at.elapsed().as_secs(),
                took_us: u64::try_from(turn.took.as_micros()).unwrap_or(u64::MAX),
                connections: turn.connections as u64,
            }),
        }
    }
}

impl Snapshot {
    /// What keeps anything from forwarding comes before what is wrong with the one that forwards.
    pub(super) fn with_trouble(mut self, trouble: Option<&str>) -> Self {
        if let Some(trouble) = trouble {
            self.trouble = Some(trouble.to_owned());
        }
        self
    }
}
