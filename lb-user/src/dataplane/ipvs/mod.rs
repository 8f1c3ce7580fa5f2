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
mod looking;
mod own;
mod probes;
mod reconcile;
mod sharing;
mod slow;
mod slow_path;
mod snapshot;
mod state;
pub mod sync;
mod sysctl;
mod unanswered;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use self::{
    codec::{Command, Key, SyncDaemon, SyncState, Timeouts},
    desired::Wanted,
    kernel::{Kernel, Table, describe},
    looking::Looking,
    own::is_own,
    probes::Probes,
    sharing::Sharing,
    slow::Slow,
    state::StateFile,
    sysctl::Needs,
};
pub use self::{feed::Fed, kernel::KernelError, slow_path::servers};
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
    loaded: HashSet<String>,
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

/// What had to be done.
#[derive(Default)]
struct Done {
    what: Vec<String>,
    /// Nothing else was wanted than before: somebody else made it necessary.
    by_others: bool,
}

/// Everything that the kernel is made to hold.
#[derive(Debug, PartialEq)]
struct Expected {
    services: Vec<Wanted>,
    needs: Needs,
    timeouts: Timeouts,
    sync: Option<SyncDaemon>,
    /// Those that take answers of probes.
    interfaces: Vec<String>,
}

impl Ipvs {
    /// Gets ready. Nothing in the kernel changes before a plan is applied.
    pub fn start(timeouts: &FlowTimeouts, runtime: &Runtime) -> Result<Self, DataPlaneError> {
        let mut kernel = Kernel::open()?;
        let state = StateFile::open(&runtime.socket);
        let held = kernel.table()?;
        Ok(Self {
            table_size: kernel.table_size()?,
            kernel,
            took_over: state.was_left(),
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
            loaded: HashSet::new(),
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

    /// Makes the kernel hold what `plan` wants, and returns what had to be done for it. What others made necessary is
    /// told, also where a later step fails.
    fn bring_about(&mut self, plan: &Plan) -> Result<Vec<String>, DataPlaneError> {
        let mut done = Done::default();
        let result = self.do_what_is_missing(plan, &mut done);
        if done.by_others {
            self.note_repairs(&done.what);
        }
        result.map(|()| done.what)
    }

    fn do_what_is_missing(&mut self, plan: &Plan, done: &mut Done) -> Result<(), DataPlaneError> {
        self.held = self.read_table()?;
        self.slow.let_go(&self.held, plan);
        let wanted = self.wanted(plan);
        let expected = Some(Expected {
            services: wanted.clone(),
            needs: self.needs(plan, false),
            timeouts: self.timeouts,
            sync: self.sync_daemon(plan),
            interfaces: self.probes.interfaces().to_vec(),
        });
        done.by_others = self.expected == expected;
        let done = &mut done.what;
        let services = plan.services.iter();
        let configured: HashSet<Key> = services
            .map(desired::key)
            .chain(self.probes.keys())
            .chain(self.slow.keys())
            .collect();
        let steps = reconcile::steps(&wanted, &self.held, |key| {
            configured.contains(key) || self.state.has(key)
        });
        self.state
            .claim(configured.iter().copied())
            .map_err(state_error)?;
        // The kernel lets go of a removed service's connections only with `expire_nodest_conn`: it goes last.
        let is_the_end = wanted.is_empty();
        if !is_the_end {
            self.set_sysctls(plan, steps.reorders, done)?;
        }
        if !plan.services.is_empty() {
            self.follow_timeouts(done)?;
        }
        for command in &steps.commands {
            self.kernel.change(command)?;
            done.push(describe(command));
        }
        for command in &steps.tidying {
            self.kernel.change(command)?;
        }
        self.follow_sync(plan, done)?;
        if is_the_end || steps.reorders {
            self.set_sysctls(plan, false, &mut Vec::new())?;
        }
        self.state
            .keep(configured.into_iter())
            .map_err(state_error)?;
        if !steps.commands.is_empty() || !steps.tidying.is_empty() {
            self.held = self.kernel.table()?;
        }
        self.read = Instant::now();
        self.expected = expected;
        Ok(())
    }

    fn set_sysctls(
        &mut self,
        plan: &Plan,
        reorders: bool,
        done: &mut Vec<String>,
    ) -> Result<(), DataPlaneError> {
        let needs = self.needs(plan, reorders);
        let changes = sysctl::apply(needs, &mut self.state).map_err(sysctl_error)?;
        done.extend(changes);
        let interfaces = self.probes.interfaces();
        done.extend(sysctl::accept_own(interfaces, &mut self.state).map_err(sysctl_error)?);
        Ok(())
    }

    fn follow_timeouts(&mut self, done: &mut Vec<String>) -> Result<(), DataPlaneError> {
        let now = self.kernel.timeouts()?;
        if now != self.timeouts {
            self.state
                .remember_timeouts([now.tcp, now.tcp_fin, now.udp])
                .map_err(state_error)?;
            self.kernel.change(&Command::SetTimeouts(self.timeouts))?;
            done.push("change time-outs".to_owned());
        }
        Ok(())
    }

    /// Looks after the kernel's table: whatever is not as it should be was changed by somebody else. Comes before
    /// another plan, which would put that right and could not tell whose change it was; a change of roles cannot wait
    /// for it.
    fn repair(&mut self) {
        let Some(plan) = self.plan.take() else { return };
        let result = self.bring_about(&plan);
        self.plan = Some(plan);
        match result {
            Ok(_) => self.trouble = None,
            Err(error) => {
                let error = error.to_string();
                if self.trouble.as_ref() != Some(&error) {
                    tracing::error!(error, "IPVS is not as it should be");
                    self.trouble = Some(error);
                }
            }
        }
    }

    fn note_repairs(&mut self, done: &[String]) {
        let Some(last) = done.last() else { return };
        tracing::warn!(
            repairs = done.join("; "),
            "somebody else changed IPVS; it is as it should be again"
        );
        self.repaired.push(match done.len() {
            1 => format!("somebody else changed IPVS, and this was done to mend it: {last}"),
            many => format!(
                "somebody else changed IPVS, and {many} things were done to mend it, the last one: {last}"
            ),
        });
        self.repairs.count += done.len() as u64;
        self.repairs.last = Some(last.clone());
        self.repairs.at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
    }

    /// What others changed since the last time, and is as it was again, in words.
    pub fn take_repairs(&mut self) -> Vec<String> {
        std::mem::take(&mut self.repaired)
    }

    /// Makes the kernel hold another plan, and returns its number.
    fn put(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        let lack = |service| Some((service, PlannedService::ipvs_lacks(service)?));
        if let Some((service, what)) = plan.services.iter().find_map(lack) {
            return Err(DataPlaneError::Lacks {
                plane: "IPVS",
                service: service.id.to_string(),
                what,
            });
        }
        let done = match self.bring_about(plan) {
            Ok(done) => done,
            Err(error) => {
                // All of a plan or nothing of it.
                self.expected = None;
                self.follow();
                return Err(error);
            }
        };
        if !done.is_empty() || self.plan.is_none() {
            tracing::debug!(changes = done.join("; "), "IPVS");
            self.generation += 1;
        }
        self.plan = Some(plan.clone());
        Ok(self.generation)
    }

    /// Follows a change that we made ourselves.
    fn follow(&mut self) {
        if let Some(plan) = self.plan.take() {
            let result = self.bring_about(&plan);
            self.plan = Some(plan);
            match result {
                Ok(_) => self.trouble = None,
                Err(error) => {
                    let error = error.to_string();
                    tracing::error!(error, "IPVS does not follow; the next second tries again");
                    self.trouble = Some(error);
                }
            }
        }
    }

    /// Removes what is ours from the kernel.
    fn clear(&mut self) -> Result<(), DataPlaneError> {
        let empty = Plan::default();
        self.takes_over_until = None;
        self.probes = Probes::default();
        self.slow.clear();
        self.learning = false;
        self.bring_about(&empty)?;
        if let Some([tcp, tcp_fin, udp]) = self.state.timeouts() {
            let before = Timeouts { tcp, tcp_fin, udp };
            self.kernel.change(&Command::SetTimeouts(before))?;
        }
        self.state.remove().map_err(state_error)
    }
}

/// Whether the kernel's IPVS forwarded for an earlier daemon, and still does.
pub fn was_left(runtime: &Runtime) -> bool {
    StateFile::open(&runtime.socket).was_left()
}

/// Whether the kernel has IPVS without being asked to load it.
pub fn is_loaded() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

/// Removes what a daemon with another data plane left in the kernel's IPVS, if it left anything.
pub fn remove_leftovers(runtime: &Runtime) -> Result<bool, DataPlaneError> {
    let mut state = StateFile::open(&runtime.socket);
    if state.is_empty() {
        return Ok(false);
    }
    let mut kernel = Kernel::open()?;
    for (entry, _) in kernel.table()? {
        let key = entry.service.key;
        if state.has(&key) {
            kernel.change(&Command::DeleteService(key))?;
        }
    }
    if state.has_sync() {
        for daemon in kernel.daemons()? {
            kernel.change(&Command::DeleteDaemon(daemon.state))?;
        }
    }
    sysctl::apply(Needs::default(), &mut state).map_err(sysctl_error)?;
    sysctl::accept_own(&[], &mut state).map_err(sysctl_error)?;
    if let Some([tcp, tcp_fin, udp]) = state.timeouts() {
        let before = Timeouts { tcp, tcp_fin, udp };
        kernel.change(&Command::SetTimeouts(before))?;
    }
    state.remove().map_err(state_error)?;
    Ok(true)
}

/// Where a daemon with this socket keeps what it must not forget about IPVS.
pub fn state_path(socket: &Path) -> std::path::PathBuf {
    StateFile::path_of(socket)
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
            self.expected = None;
            self.follow();
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
        self.follow();
    }

    /// The kernel looks for its neighbours itself.
    fn set_neighbour(&mut self, _address: IpAddr, _neighbour: Option<Neighbour>) {}

    fn set_timeouts(&mut self, timeouts: &FlowTimeouts) {
        self.repair();
        self.timeouts = seconds(timeouts);
        self.follow();
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
