//! Both data planes behind one interface: the one that forwards, and the one that stands ready.
//!
//! XDP that is lost while it forwards gives its connections to IPVS, and gets them back when it can forward
//! again. `pace` says when that is tried. What the daemon tells goes to both, so that the one that stands
//! ready can begin at once; plans go to the one that forwards only, and to both while connections are still
//! coming from IPVS.
//!
//! The way to IPVS: services appear, XDP is taken off what is left to it, and the kernel learns the connections of
//! its flow tables. Whoever owns this keeps packets from IPVS and from the host's own stack meanwhile, which would
//! answer them with resets. Where that cannot be, the kernel learns the connections once more before services appear,
//! because it would schedule their datagrams, and schedules segments that it does not know last of all.
//!
//! The way back: XDP begins with the kernel's connections, and passes to the kernel what neither begins a
//! connection nor belongs to one that it knows. Then it learns the kernel's connections again, for those that began
//! meanwhile, and a moment later once more, for those that were on their way. Then IPVS's services go.

mod alone;
mod change;
mod pace;
mod pair;
mod show;
mod slow;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use self::pace::Pace;
pub use self::{
    alone::Alone,
    pair::Pair,
    show::{LastSwitch, Switching},
    slow::SlowPath,
};
use super::{
    BackendKey, CaptureQuery, DataPlane, DataPlaneError, FlowPage, FlowQuery, Plan, Snapshot,
    TableInfo, Why, WhyQuery, ipvs::Ipvs, silence::Silence,
};
use crate::model::{FlowTimeouts, Neighbour, ProbePath, ProbeStyle, Protection};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The XDP program.
    Xdp,
    /// The kernel's IPVS.
    Ipvs,
}

impl Kind {
    /// As configured and shown.
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Xdp => "xdp",
            Kind::Ipvs => "ipvs",
        }
    }
}

/// What an operator ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// XDP where it can be, else IPVS.
    Auto,
    /// This one, whatever happens.
    Only(Kind),
}

/// Something that happened to the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// In words.
    pub text: String,
    /// Whether packets are lost because of it.
    pub is_bad: bool,
}

/// The last switch.
#[derive(Clone, Debug)]
struct Turn {
    to: Kind,
    reason: String,
    at: Instant,
    took: Duration,
    connections: usize,
}

/// Both data planes.
pub struct Planes {
    pair: Pair,
    /// Why no other one may forward; none where one may.
    alone: Option<Alone>,
    order: Order,
    /// Why this one forwards.
    reason: String,
    epoch: Instant,
    pace: Pace,
    /// XDP forwards, and connections are still coming from IPVS until then.
    settling: Option<Instant>,
    /// XDP forwards, and IPVS has connections of an earlier daemon.
    inherits: bool,
    news: VecDeque<News>,
    /// How often XDP and IPVS took over from the other.
    turns: [u64; 2],
    last: Option<Turn>,
    /// Why nothing forwards as it should.
    trouble: Option<String>,
    /// Why XDP could not be had the last time.
    refusal: Option<String>,
    /// When XDP was put back at once for the last time.
    put_back: Option<Instant>,
    /// What is for a service comes neither to IPVS nor to this host's own stack while XDP forwards.
    guarded: bool,
    generation: u64,
    /// The forwarding plane's own number of that generation.
    inner: u64,
    plan: Plan,
    present: Vec<(String, u32)>,
    /// What IPVS takes while XDP forwards, but for the number of packets.
    slow: SlowPath,
}

impl Planes {
    /// `reason` is why that one forwards, `alone` why no other one may.
    pub fn new(pair: Pair, reason: String, alone: Option<Alone>) -> Self {
        let inherits = match &pair {
            Pair::Both { ipvs, .. } => ipvs.took_over(),
            Pair::Xdp(_) | Pair::Ipvs(_) => false,
        };
        Self {
            pair,
            alone,
            order: Order::Auto,
            reason,
            epoch: Instant::now(),
            pace: Pace::default(),
            inherits,
            settling: None,
            news: VecDeque::new(),
            turns: [0; 2],
            last: None,
            trouble: None,
            refusal: None,
            put_back: None,
            guarded: false,
            generation: 0,
            inner: 0,
            plan: Plan::default(),
            present: Vec::new(),
            slow: SlowPath::default(),
        }
    }

    /// Which one forwards.
    pub const fn forwarding(&self) -> Kind {
        self.pair.forwarding()
    }

    /// Why that one does.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether IPVS takes over if XDP is lost.
    pub fn has_fallback(&self) -> bool {
        self.fallback().is_ok()
    }

    /// Whether XDP forwards and connections are still coming from IPVS.
    pub const fn is_settling(&self) -> bool {
        self.settling.is_some() || self.inherits
    }

    /// Notes whether packets of all services that have real servers are kept from IPVS and from this host's own
    /// stack until the way to IPVS has ended. It is shorter then: the kernel is told of connections only once.
    pub const fn set_guarded(&mut self, guarded: bool) {
        self.guarded = guarded;
    }

    /// Whether an operator's order is in force.
    pub fn is_ordered(&self) -> bool {
        self.order != Order::Auto
    }

    /// What others changed since the last time, and is as it was again, in words.
    pub fn take_repairs(&mut self) -> Vec<String> {
        self.pair.ipvs().map(Ipvs::take_repairs).unwrap_or_default()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Counts generations over both planes.
    const fn count(&mut self, inner: u64) -> u64 {
        if self.generation == 0 || inner != self.inner {
            self.generation += 1;
        }
        self.inner = inner;
        self.generation
    }
}

impl DataPlane for Planes {
    fn apply(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        let inner = self.pair.active_mut().apply(plan)?;
        self.plan = plan.clone();
        if self.alone.is_none()
            && let Some((_, ipvs)) = self.pair.both()
        {
            ipvs.load_schedulers(plan);
        }
        if std::mem::take(&mut self.inherits) {
            self.inherit();
        }
        if self.settling.is_some()
            && let Some((_, ipvs)) = self.pair.both()
            && let Err(error) = ipvs.apply(plan)
        {
            tracing::debug!(%error, "IPVS does not follow while its connections go to XDP");
        }
        let generation = self.count(inner);
        self.follow_slow_path();
        Ok(generation)
    }

    fn took_over(&self) -> bool {
        self.pair.active().took_over()
    }

    fn set_role(&mut self, role: u16, serving: bool) {
        self.pair
            .all()
            .for_each(|plane| plane.set_role(role, serving));
    }

    fn set_neighbour(&mut self, address: IpAddr, neighbour: Option<Neighbour>) {
        self.pair
            .all()
            .for_each(|plane| plane.set_neighbour(address, neighbour));
    }

    fn set_timeouts(&mut self, timeouts: &FlowTimeouts) {
        self.pair
            .all()
            .for_each(|plane| plane.set_timeouts(timeouts));
    }

    fn set_own_addresses(&mut self, macs: &[(u32, [u8; 6])], vlans: &[(u32, [u16; 2])]) {
        self.pair
            .all()
            .for_each(|plane| plane.set_own_addresses(macs, vlans));
    }

    fn set_receive_mtu(&mut self, mtu: u32) {
        self.pair.all().for_each(|plane| plane.set_receive_mtu(mtu));
    }

    fn probe_style(&self) -> Option<ProbeStyle> {
        self.pair.probing().probe_style()
    }

    /// XDP's classifiers lead probes to VIPs whether or not its program forwards.
    fn set_probes(
        &mut self,
        paths: &[ProbePath],
        interfaces: &[String],
    ) -> Result<(), DataPlaneError> {
        match self.pair.xdp() {
            Some(xdp) => xdp.set_probes(paths, interfaces),
            None => self.pair.active_mut().set_probes(paths, interfaces),
        }
    }

    fn follow_interfaces(&mut self, present: &[(String, u32)]) {
        self.present = present.to_vec();
        if self.forwarding() == Kind::Xdp {
            self.pair.active_mut().follow_interfaces(present);
            self.after_following();
        } else if let Some(xdp) = self.pair.xdp() {
            xdp.follow_classifiers(present);
        }
    }

    fn set_protection(&mut self, protection: &Protection) -> Result<(), DataPlaneError> {
        self.pair
            .all()
            .try_for_each(|plane| plane.set_protection(protection))
    }

    fn snapshot(&mut self) -> Snapshot {
        let shown = self.show();
        let slow_path = self.show_slow_path();
        let repairs = self.pair.repairs();
        Snapshot {
            choice: self.reason.clone(),
            generation: self.generation,
            switching: shown,
            slow_path,
            repairs,
            ..self.pair.active_mut().snapshot()
        }
        .with_trouble(self.trouble.as_deref())
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.pair.active().tables()
    }

    fn dump(&self, table: &str) -> Option<Vec<serde_json::Value>> {
        self.pair.active().dump(table)
    }

    fn flows(&self, query: &FlowQuery) -> Result<FlowPage, String> {
        self.pair.active().flows(query)
    }

    fn why(&self, query: &WhyQuery) -> Result<Why, String> {
        self.pair.active().why(query)
    }

    fn capture(&mut self, query: &CaptureQuery) -> Result<mpsc::Receiver<Vec<u8>>, String> {
        self.pair.active_mut().capture(query)
    }

    fn sweep(&mut self) {
        self.pair.active_mut().sweep();
        self.tend_slow_path();
    }

    fn silent(&self) -> Vec<(BackendKey, Silence)> {
        self.pair.active().silent()
    }

    fn detach(&mut self) -> Result<(), DataPlaneError> {
        let busy = self.settling.take().is_some() || self.forwarding() == Kind::Ipvs;
        if let Some(xdp) = self.pair.xdp() {
            slow::close(xdp);
        }
        match self.pair.both() {
            Some((xdp, ipvs)) if busy || ipvs.has_slow_path() => ipvs.detach().and(xdp.detach()),
            // One that only stood ready has nothing in the kernel.
            Some((xdp, _)) => xdp.detach(),
            None => self.pair.active_mut().detach(),
        }
    }
}
