//! The kernel's IPVS as data plane: for where XDP cannot be used, and for what only IPVS can do.
//!
//! What the kernel should hold follows from the plan (`desired`); what it does hold is read back each
//! time, and the difference is sent (`reconcile`). So applying twice sends nothing, and whatever
//! somebody else changes is found and changed back within a second. Which services are ours is known
//! by the configuration and by `state`; others are left alone. Only this folder speaks IPVS's netlink.
//!
//! A BACKUP holds its services as well: their packets do not come to it. One that has the address all
//! the same, because it is a real server too, does not hold them: it would send packets on that are
//! for itself.

pub mod codec;
mod connections;
mod desired;
mod feed;
mod handover;
pub mod kernel;
mod leftovers;
mod looking;
mod own;
mod probes;
mod reconcile;
mod schedulers;
mod sharing;
mod slow;
mod slow_path;
mod snapshot;
mod state;
pub mod sync;
mod sysctl;
mod unanswered;
mod upkeep;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use self::{
    codec::{SyncState, Timeouts},
    desired::Wanted,
    kernel::{Kernel, Table},
    looking::Looking,
    own::is_own,
    probes::Probes,
    schedulers::Schedulers,
    sharing::Sharing,
    slow::Slow,
    state::StateFile,
    sysctl::Needs,
    upkeep::Expected,
};
pub use self::{
    feed::Fed,
    kernel::KernelError,
    leftovers::{is_loaded, remove_leftovers, state_path, was_left},
    slow_path::servers,
};
use super::{
    BackendKey, CaptureQuery, DataPlane, DataPlaneError, FlowPage, FlowQuery, Plan, Repairs,
    Snapshot, TableInfo, Why, WhyQuery, plan::PlannedService, silence::Silence,
};
use crate::model::{FlowTimeouts, Neighbour, ProbePath, ProbeStyle, Protection, Runtime};

/// What was read back may be this old in a snapshot.
const STALE: Duration = Duration::from_millis(100);

/// IPVS as data plane.
pub struct Ipvs {
    kernel: Kernel,
    state: StateFile,
    version: (u32, u32),
    table_size: u32,
    took_over: bool,
    plan: Option<Plan>,
    /// Roles that are served.
    serving: HashSet<u16>,
    /// Health checks of a VIP on one real server.
    probes: Probes,
    /// What the XDP program leaves to the kernel.
    slow: Slow,
    /// How often that was looked after.
    looks: u32,
    epoch: Instant,
    timeouts: Timeouts,
    /// Until when connections may come that somebody else forwarded before.
    takes_over_until: Option<Instant>,
    /// Connections are still being told to the kernel: those that it does not know are not new.
    learning: bool,
    /// Schedulers whose modules were asked for.
    schedulers: Schedulers,
    /// What the kernel was made to hold last; nothing after a change of ours that was not done in full.
    expected: Option<Expected>,
    held: Table,
    read: Instant,
    generation: u64,
    repairs: Repairs,
    /// Those that nobody was told of yet.
    repaired: Vec<String>,
    /// Real servers that answer no client.
    looking: Looking,
    /// The kernel's own sharing of connections.
    sharing: Sharing,
    /// The last trouble, so that it is logged once.
    trouble: Option<String>,
}

impl Ipvs {
    /// Gets ready. Nothing in the kernel changes before a plan is applied.
    pub fn start(timeouts: &FlowTimeouts, runtime: &Runtime) -> Result<Self, DataPlaneError> {
        let mut kernel = Kernel::open()?;
        let mut state = StateFile::open(&runtime.socket);
        let took_over = state.has_served();
        // Whoever had XDP's connections is gone, or has kept them.
        state.set_telling(false).map_err(state_error)?;
        let held = kernel.table()?;
        Ok(Self {
            table_size: kernel.table_size()?,
            kernel,
            took_over,
            state,
            version: sysctl::kernel_version(),
            plan: None,
            serving: HashSet::new(),
            probes: Probes::default(),
            slow: Slow::default(),
            looks: 0,
            epoch: Instant::now(),
            timeouts: seconds(timeouts),
            takes_over_until: None,
            learning: false,
            schedulers: Schedulers::default(),
            expected: None,
            held,
            read: Instant::now(),
            generation: 0,
            repairs: Repairs::default(),
            repaired: Vec::new(),
            looking: Looking::default(),
            sharing: Sharing::default(),
            trouble: None,
        })
    }

    /// How often the kernel was told to change something.
    pub const fn changes(&self) -> u64 {
        self.kernel.changes()
    }

    /// What others changed and was changed back.
    pub const fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    fn is_serving(&self, role: u16) -> bool {
        role == 0 || self.serving.contains(&role)
    }

    fn wanted(&self, plan: &Plan) -> Vec<Wanted> {
        let here = |service: &&PlannedService| {
            self.is_serving(service.role) || !is_own(service.id.address)
        };
        plan.services
            .iter()
            .filter(here)
            .map(desired::wanted)
            .chain(self.probes.wanted())
            .chain(self.slow.wanted())
            .collect()
    }

    fn needs(&self, plan: &Plan, reorders: bool) -> Needs {
        let lost = |service: &PlannedService| {
            service.persistence.is_some()
                && service
                    .backends
                    .iter()
                    .any(|backend| backend.state.only_known_flows())
        };
        Needs {
            services: !plan.services.is_empty() || !self.slow.is_empty(),
            slow_path: self.slow.is_open(),
            lost_persistent: plan.services.iter().any(lost),
            takes_over: self
                .takes_over_until
                .is_some_and(|until| Instant::now() < until),
            learning: self.learning,
            backup: self.learns_of_own(plan),
            reorders,
            kernel: self.version,
        }
    }

    /// Whether connections may be known here that the other director sends to us as a real server.
    fn learns_of_own(&self, plan: &Plan) -> bool {
        let daemon = self.sync_daemon(plan);
        daemon.is_some_and(|daemon| daemon.state == SyncState::Backup)
            && plan.services.iter().any(|s| is_own(s.id.address))
    }

    /// Connections may come that somebody else forwarded before.
    fn expect_strangers(&mut self) {
        // A connection that is silent for longer than that is none any more.
        let longest = Duration::from_secs(u64::from(self.timeouts.tcp));
        self.takes_over_until = Instant::now().checked_add(longest);
    }
}

fn state_error(source: io::Error) -> DataPlaneError {
    KernelError::Socket {
        what: "write the file that says which services are ours",
        source,
    }
    .into()
}

fn sysctl_error(source: io::Error) -> DataPlaneError {
    KernelError::Socket {
        what: "change a sysctl",
        source,
    }
    .into()
}

fn seconds(timeouts: &FlowTimeouts) -> Timeouts {
    let whole = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
    Timeouts {
        tcp: whole(timeouts.tcp),
        tcp_fin: whole(timeouts.tcp_closing),
        udp: whole(timeouts.udp),
    }
}

impl DataPlane for Ipvs {
    fn apply(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        self.repair();
        self.put(plan)
    }

    fn probe_style(&self) -> Option<ProbeStyle> {
        let is_off = |plan: &Plan| self.learns_of_own(plan);
        // IPVS forwards nothing then (backup_only): probes would reach our own stack.
        (!self.plan.as_ref().is_some_and(is_off)).then_some(ProbeStyle::Scheduled)
    }

    fn set_probes(
        &mut self,
        paths: &[ProbePath],
        interfaces: &[String],
    ) -> Result<(), DataPlaneError> {
        self.repair();
        let Some(plan) = self.plan.take() else {
            return Err(DataPlaneError::NoProbes("there is no plan yet".to_owned()));
        };
        let before = self.probes.follow(paths, interfaces);
        let result = self.bring_about(&plan);
        self.plan = Some(plan);
        result.map(drop).map_err(|error| {
            self.probes = before;
            self.repair();
            DataPlaneError::NoProbes(error.to_string())
        })
    }

    fn took_over(&self) -> bool {
        self.took_over
    }

    fn set_role(&mut self, role: u16, serving: bool) {
        let changed = match serving {
            true => self.serving.insert(role),
            false => self.serving.remove(&role),
        };
        if !changed {
            return;
        }
        if serving {
            self.expect_strangers();
        }
        self.repair();
    }

    /// The kernel looks for its neighbours itself.
    fn set_neighbour(&mut self, _address: IpAddr, _neighbour: Option<Neighbour>) {}

    fn set_timeouts(&mut self, timeouts: &FlowTimeouts) {
        self.repair();
        self.timeouts = seconds(timeouts);
        self.repair();
    }

    fn set_receive_mtu(&mut self, _mtu: u32) {}

    /// The kernel knows what is for it.
    fn set_own_addresses(&mut self, _macs: &[(u32, [u8; 6])], _vlans: &[(u32, [u16; 2])]) {}

    /// IPVS is tied to no interface.
    fn follow_interfaces(&mut self, _present: &[(String, u32)]) {}

    /// IPVS has no such lists; the status says so where there are any.
    fn set_protection(&mut self, _protection: &Protection) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Snapshot {
        if self.read.elapsed() >= STALE
            && let Ok(table) = self.kernel.table()
        {
            self.held = table;
            self.read = Instant::now();
        }
        self.show()
    }

    fn tables(&self) -> Vec<TableInfo> {
        Vec::new()
    }

    fn dump(&self, _table: &str) -> Option<Vec<serde_json::Value>> {
        None
    }

    fn flows(&self, query: &FlowQuery) -> Result<FlowPage, String> {
        let made = |c: SocketAddr, vip, server| self.probes.made(c, vip, server) && is_own(c.ip());
        connections::flows(self.plan.as_ref(), query, made)
    }

    fn why(&self, query: &WhyQuery) -> Result<Why, String> {
        connections::why(self.plan.as_ref(), query)
    }

    fn capture(&mut self, _query: &CaptureQuery) -> Result<mpsc::Receiver<Vec<u8>>, String> {
        Err(
            "IPVS forwards in the kernel, where lbd sees no packets; `tcpdump` on the interface does"
                .to_owned(),
        )
    }

    fn sweep(&mut self) {
        self.repair();
        self.look_for_silence();
    }

    fn silent(&self) -> Vec<(BackendKey, Silence)> {
        self.looking.silent()
    }

    fn detach(&mut self) -> Result<(), DataPlaneError> {
        self.plan = None;
        self.clear()
    }
}
