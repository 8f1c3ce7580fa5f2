//! The composition root: the only part that knows all subsystems. It turns what one reports into
//! what the others must do, in one task, one event at a time.

mod accepting;
mod addresses;
mod data_plane;
mod doctor;
mod error;
mod events;
mod files;
mod health;
mod journal;
mod links;
mod neighbours;
mod placed;
mod placing;
mod pools;
mod reload;
mod renaming;
mod roles;
mod silence;
mod steering;
mod succession;
mod tracking;
mod tracking_view;
mod unsent;
mod views;
mod virtual_macs;
mod ways;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

pub(crate) use self::error::with_sources;
use self::{
    addresses::Addresses,
    links::Links,
    neighbours::Neighbours,
    pools::Pools,
    roles::Roles,
    tracking::{Accounts, Tracking},
};
pub use self::{error::DaemonError, files::load_config};
use crate::{
    api::{
        server::{Request, Server},
        web::Web,
    },
    dataplane::{
        DataPlane, DataPlaneError, Plan,
        plan::{self, Steering},
        selection,
        switching::Planes,
    },
    events::Kind,
    health::{
        board::{Board, Change},
        driver::Checks,
        lateness::Lateness,
        paths::Paths,
    },
    model::{Config, Forwarding, Instance, Neighbour, ServiceId, VirtualService, VrrpState},
    net::{
        firewall::Firewall,
        interfaces::{Interface, Interfaces},
        netlink::{Events, Netlink},
        routes,
    },
    notify::Notifier,
    script::Account,
    track::{self, Finding},
    vrrp::driver::{Driver, Report, Setup},
};

/// Housekeeping: neighbours are looked after.
const TICK: Duration = Duration::from_secs(1);
/// Reports of the VRRP thread that are handled before anything else has its turn: a few failovers of a
/// whole sync group.
const REPORTS_IN_A_ROW: u32 = 64;
/// Expired flows are swept this often. Their slots count as free before that; the sweep is for
/// counting, for tables that must grow, and for slots whose writer was lost.
const SWEEP: Duration = Duration::from_secs(1);
/// The data plane is asked so often whether it still runs: one question to the kernel for each interface.
const WATCH: Duration = Duration::from_millis(10);
/// How long scripts of the shut-down may run on.
const SCRIPTS_AT_STOP: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub async fn run(path: &Path) -> Result<(), DaemonError> {
    let config = load_config(path)?;
    let signals = Signals::new().map_err(|source| DaemonError::System {
        what: "handle signals",
        source,
    })?;
    let (mut daemon, inputs) = Daemon::start(path.to_owned(), config).await?;
    daemon.event(
        Kind::Daemon,
        "",
        format!("lbd {} has started", env!("CARGO_PKG_VERSION")),
    );
    tracing::info!(
        router_id = daemon.config.router_id,
        config = %path.display(),
        "lbd {} is running",
        env!("CARGO_PKG_VERSION")
    );
    daemon.serve(inputs, signals).await
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Everything that can wake the daemon.
struct Inputs {
    reports: mpsc::Receiver<Report>,
    changes: mpsc::Receiver<Change>,
    findings: mpsc::Receiver<Finding>,
    routes: watch::Receiver<routes::Found>,
    requests: mpsc::Receiver<Request>,
    net: Events,
    removals: mpsc::Receiver<()>,
}

/// What is known of an instance besides what the VRRP thread knows. One that a reload removes stays
/// until the thread has reported its end.
struct InstanceRecord {
    instance: Instance,
    state: VrrpState,
    generation: u64,
}

/// The last switch of the data plane's configuration.
struct Switch {
    generation: u64,
    reason: String,
    at: SystemTime,
}

struct Daemon {
    path: PathBuf,
    config: Config,
    started: Instant,
    netlink: Netlink,
    interfaces: Interfaces,
    addresses: Addresses,
    firewall: Firewall,
    /// What the kernel did not tell when it was asked, and why: asked again with every tick.
    untold: BTreeMap<&'static str, String>,
    /// Why addresses that should be closed are not.
    not_closed: Option<String>,
    /// Why this host's own stack would reset connections while IPVS takes over from XDP.
    unguarded: Option<String>,
    /// Packets that XDP leaves to IPVS are led past what keeps others from this host's own stack.
    leads_to_ipvs: bool,
    neighbours: Neighbours,
    roles: Roles,
    vrrp: Option<Driver>,
    instances: BTreeMap<String, InstanceRecord>,
    checks: Checks,
    paths: Paths,
    /// What the checks' ways were when they began.
    led: BTreeMap<(IpAddr, IpAddr), ways::WayToVip>,
    tracking: Tracking,
    links: Links,
    health: Board,
    pools: Pools,
    /// What is written down of health is not what is known.
    memory_is_old: bool,
    /// From the ends of attempts to the data plane that follows them.
    reactions: Lateness,
    data_plane: Planes,
    switch: Switch,
    /// Instances that still serve as the daemon before this one did.
    resumed: HashSet<String>,
    /// For the watch over routes and rules; gone when that is running.
    removals: Option<mpsc::Sender<()>>,
    /// What operators told of real servers since the last reload.
    steered: BTreeMap<(ServiceId, IpAddr), Steering>,
    /// Why the last reload was refused, and what of it waits for a restart.
    refused: Option<String>,
    waiting: Vec<String>,
    /// The data plane refused its last plan; the next tick tries again.
    behind: bool,
    /// The last plan that the data plane took.
    planned: Plan,
    notifier: Option<Notifier>,
    journal: crate::events::Events,
    reloads: journal::Reloads,
    server: Option<Server>,
    web: Option<Web>,
}

impl Daemon {
    /// Checks everything that can be refused before anything is changed, then starts the parts.
    async fn start(path: PathBuf, config: Config) -> Result<(Self, Inputs), DaemonError> {
        let account = Account::of(&config.runtime.script_user)?;
        let accounts = Accounts::of(&config)?;
        let (netlink, net) = Netlink::connect()?;
        let mut interfaces = Interfaces::default();
        let mut neighbours = Neighbours::default();
        for event in netlink.dump().await? {
            interfaces.apply(&event);
            neighbours.learn(&event);
        }
        require_interfaces(&config, &interfaces)?;
        let addresses = Addresses::new(netlink.clone()).map_err(|source| DaemonError::System {
            what: "open a packet socket (root or CAP_NET_RAW is needed)",
            source,
        })?;
        let (server, requests) = Server::start(&config.runtime.socket).await?;
        // Before anything that cannot be undone.
        let notifier = Notifier::new(&config, account)?;
        let web = match config.metrics {
            Some(address) => Some(Web::start(address, server.requests()).await?),
            None => None,
        };
        let data_plane = selection::start(&config)?;
        let (vrrp, reports) = Driver::start().map_err(|source| DaemonError::System {
            what: "start the VRRP thread",
            source,
        })?;
        let (checks, changes) = Checks::new(account);
        let (removal_sender, removals) = mpsc::channel(1);
        let (finder, findings) = track::findings();
        let (tracking, routes) = Tracking::new(&finder);
        let mut daemon = Self {
            path,
            started: Instant::now(),
            netlink,
            interfaces,
            addresses,
            firewall: Firewall::default(),
            untold: BTreeMap::new(),
            not_closed: None,
            unguarded: None,
            leads_to_ipvs: false,
            neighbours,
            roles: Roles::default(),
            vrrp: Some(vrrp),
            instances: BTreeMap::new(),
            checks,
            paths: Paths::default(),
            led: BTreeMap::new(),
            tracking,
            links: Links::new(),
            health: Board::default(),
            pools: Pools::default(),
            memory_is_old: false,
            reactions: Lateness::default(),
            data_plane,
            switch: Switch {
                generation: 0,
                reason: "start".to_owned(),
                at: SystemTime::now(),
            },
            resumed: HashSet::new(),
            removals: Some(removal_sender),
            steered: BTreeMap::new(),
            refused: None,
            waiting: Vec::new(),
            behind: false,
            planned: Plan::default(),
            notifier: Some(notifier),
            journal: crate::events::Events::new(journal::now_ms()),
            reloads: journal::Reloads::default(),
            server: Some(server),
            web,
            config,
        };
        reload::warn_of_weak_authentication(&daemon.config);
        daemon.tell_of_data_plane();
        if let Err(error) = daemon.first_configuration(&accounts).await {
            let _ = daemon.data_plane.detach();
            return Err(error);
        }
        Ok((
            daemon,
            Inputs {
                reports,
                changes,
                findings,
                routes,
                requests,
                net,
                removals,
            },
        ))
    }

    /// Which data plane runs, and what that leaves undone.
    fn tell_of_data_plane(&mut self) {
        let snapshot = self.data_plane.snapshot();
        let interfaces: Vec<String> = snapshot
            .interfaces
            .iter()
            .map(|at| format!("{} ({})", at.interface, at.mode))
            .collect();
        tracing::info!(
            interfaces = interfaces.join(", "),
            reason = snapshot.choice,
            "data plane: {}",
            snapshot.kind
        );
        if snapshot.kind != "xdp" {
            return;
        }
        for instance in &self.config.instances {
            let attached = &self.config.dataplane.interfaces;
            if !attached.contains(&instance.interface) {
                let (name, interface) = (&instance.name, &instance.interface);
                tracing::warn!(
                    instance = name,
                    interface,
                    "the XDP program does not run on this instance's interface"
                );
            }
        }
    }

    async fn first_configuration(&mut self, accounts: &Accounts) -> Result<(), DaemonError> {
        let freed = self.roles.follow(&names(&self.config));
        self.follow_instances(&freed);
        self.make_virtual_macs(true).await?;
        self.follow_own_addresses();
        self.find_neighbours().await;
        self.resume().await;
        self.recall();
        self.watch_routes();
        self.follow_accept_mode();
        self.apply("start")?;
        self.serve_only_resumed();
        // A change of health makes the daemon look at what is watched.
        self.tracking.configure(&self.config, accounts).await;
        self.start_checks();
        let setups = self.setups();
        if let Some(vrrp) = &self.vrrp {
            vrrp.configure(setups).await;
        }
        Ok(())
    }

    /// Every other flag that an earlier daemon may have left set.
    fn serve_only_resumed(&mut self) {
        let kept: Vec<u16> = self
            .resumed
            .iter()
            .filter_map(|name| self.roles.of(name))
            .collect();
        for role in (1..lb_common::limits::MAX_ROLES as u16).filter(|role| !kept.contains(role)) {
            self.data_plane.set_role(role, false);
        }
    }

    async fn serve(&mut self, mut inputs: Inputs, mut signals: Signals) -> Result<(), DaemonError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports_in_a_row = 0;
        loop {
            let announcement = self.addresses.next_announcement();
            let before = std::mem::take(&mut reports_in_a_row);
            tokio::select! {
                // A transition waits for nothing else, but not even a flood of them stops the rest.
                biased;
                report = inputs.reports.recv(), if before < REPORTS_IN_A_ROW => match report {
                    Some(report) => {
                        reports_in_a_row = before + 1;
                        self.on_report(report).await;
                    }
                    None => {
                        self.stop(inputs.reports).await?;
                        return Err(DaemonError::NoVrrp);
                    }
                },
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = watch.tick() => self.watch_data_plane(),
                () = reached(self.pools.due) => self.apply_or_stay("weights grow after a return"),
                () = reached(announcement) => self.addresses.announce_due(&self.interfaces),
                Some(event) = inputs.net.next() => self.on_net(event).await,
                Some(()) = inputs.removals.recv() => self.put_back().await,
                Some(change) = inputs.changes.recv() => self.on_health(change, &mut inputs.changes),
                Some(finding) = inputs.findings.recv() => self.on_finding(finding),
                Ok(()) = inputs.routes.changed() => self.follow_watches(),
                () = self.links.due() => self.follow_links(),
                _ = signals.hangup.recv() => self.on_hangup(&mut inputs.reports).await,
                Some(request) = inputs.requests.recv() => self.on_request(request, &mut inputs.reports).await,
                _ = tick.tick() => self.on_tick(&mut inputs.reports).await,
                _ = sweep.tick() => self.sweep(),
                // Nothing else is due.
                () = std::future::ready(()), if before >= REPORTS_IN_A_ROW => {}
            }
        }
        self.stop(inputs.reports).await
    }

    /// Priority 0, addresses gone, data plane off, program detached, scripts.
    async fn stop(&mut self, mut reports: mpsc::Receiver<Report>) -> Result<(), DaemonError> {
        tracing::info!("stopping");
        if let Some(vrrp) = self.vrrp.take() {
            vrrp.stop().await;
        }
        while let Some(report) = reports.recv().await {
            self.on_report(report).await;
        }
        self.remember();
        self.addresses.remove_all(&self.interfaces).await;
        let detached = self.data_plane.detach();
        self.web = None;
        self.server = None;
        self.tell_of_the_end();
        if let Some(notifier) = self.notifier.take() {
            notifier.finish(SCRIPTS_AT_STOP).await;
        }
        tracing::info!("stopped");
        Ok(detached?)
    }

    /// Makes the data plane hold what configuration, health and neighbours demand.
    fn apply(&mut self, reason: &str) -> Result<(), DataPlaneError> {
        self.follow_pools();
        let plan = self.plan(&self.config, &self.roles);
        let result = self.install(&plan, reason);
        self.behind = result.is_err();
        result
    }

    fn plan(&self, config: &Config, roles: &Roles) -> Plan {
        let condition = |service: &VirtualService, target| self.condition(service, target);
        let mut plan = plan::build(config, roles.indexes(), condition);
        plan.remember(&self.planned);
        plan
    }

    /// Whether packets of a service can be sent to a host.
    fn is_resolved(&self, service: &VirtualService, address: IpAddr) -> bool {
        match self.neighbours.locate(address, &self.interfaces) {
            Some(Neighbour::ThisHost) => true,
            Some(Neighbour::Host(hop)) => match service.forwarding {
                Forwarding::Tunnel(_) => hop.source.is_some(),
                Forwarding::Nat => true,
                Forwarding::Dr => hop.on_link,
            },
            None => false,
        }
    }

    fn install(&mut self, plan: &Plan, reason: &str) -> Result<(), DataPlaneError> {
        let generation = self.data_plane.apply(plan)?;
        let is_another = self.planned != *plan;
        self.planned.clone_from(plan);
        let is_new = generation != self.switch.generation;
        if is_new {
            tracing::info!(
                generation,
                reason,
                "data plane switched to a new generation"
            );
            self.event(
                Kind::DataPlane,
                "",
                format!("generation {generation}: {reason}"),
            );
            self.switch = Switch {
                generation,
                reason: reason.to_owned(),
                at: SystemTime::now(),
            };
        }
        if is_another || is_new {
            // What is guarded depends on the real servers that there are.
            self.follow_accept_mode();
        }
        Ok(())
    }

    /// Clears the flags of instances that are gone and gives new ones a record.
    fn follow_instances(&mut self, freed: &[u16]) {
        for role in freed {
            self.data_plane.set_role(*role, false);
        }
        for instance in &self.config.instances {
            let new = InstanceRecord {
                instance: instance.clone(),
                state: VrrpState::Init,
                generation: 0,
            };
            let record = self.instances.entry(instance.name.clone()).or_insert(new);
            record.instance = instance.clone();
        }
    }

    /// Every instance with the present condition of its interface and of what it watches.
    fn setups(&mut self) -> Vec<Setup> {
        self.look_at_links();
        self.look_at_watched();
        let taken = self.virtual_addresses();
        self.config
            .instances
            .iter()
            .map(|instance| Setup {
                instance: instance.clone(),
                link: self.link_of(instance, &taken),
                verdict: self.verdict_of(instance),
            })
            .collect()
    }
}

/// Ends at a time, or never.
async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn names(config: &Config) -> Vec<String> {
    config
        .instances
        .iter()
        .map(|instance| instance.name.clone())
        .collect()
}

fn require_interfaces(config: &Config, interfaces: &Interfaces) -> Result<(), DaemonError> {
    let named = config
        .instances
        .iter()
        .map(|i| &i.interface)
        .chain(&config.dataplane.interfaces);
    for name in named {
        if interfaces.by_name(name).is_none() {
            return Err(DaemonError::NoInterface(name.clone()));
        }
    }
    if let Some(name) = virtual_macs::taken(&config.instances, interfaces) {
        return Err(DaemonError::ForeignInterface(name.to_owned()));
    }
    for instance in &config.instances {
        let Some(source_address) = instance.source else {
            continue;
        };
        let on = |i: &Interface| i.addresses.iter().any(|p| p.address == source_address);
        if !interfaces.by_name(&instance.interface).is_some_and(on) {
            let (name, interface) = (instance.name.clone(), instance.interface.clone());
            return Err(DaemonError::NoSourceAddress {
                name,
                source_address,
                interface,
            });
        }
    }
    Ok(())
}
