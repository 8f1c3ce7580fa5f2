//! The XDP data plane: BPF maps filled so that the program finds every answer ready.
//!
//! Two generations of services and rings lie side by side. [`Xdp::apply`] writes the one that is
//! not live and then stores its number in the control element; packets see the old configuration
//! or the new one, never a mixture. Backends belong to no generation: their elements change in
//! place, word by word, and their ids stay reserved while flows may hold them.

mod backends;
mod capture;
mod clock;
mod control;
mod dump;
mod flows;
mod generation;
mod handover;
mod ids;
mod image;
mod links;
mod mapped;
mod maps;
mod memory;
mod object;
mod own;
mod pins;
mod placement;
mod probes;
mod protect;
mod questions;
mod refusals;
mod slow;
mod snapshot;
mod start;
mod sweep;
mod syscall;
mod ways;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::{
    maps::{DevMapHash, HashMap as BpfHash, Map, MapData, PerCpuArray},
    programs::{TestRun, TestRunOptions},
};
use lb_common::{
    Backend, RingChunk,
    service::{PortRange, ServiceBucket, ServiceDetail, VipBucket},
    table::{Cursor, Load, Tunnel},
};

use tokio::sync::mpsc;

use self::{
    backends::keys,
    capture::{Capture, Events},
    clock::Clock,
    control::ControlElement,
    flows::Flows,
    ids::Ids,
    image::Image,
    mapped::MappedArray,
    maps::{Identities, PodAddress, PodCounters, PodStickyKey, PodWideKey},
    object::{Object, map_error},
    own::OwnVlans,
    pins::Pins,
    probes::Probes,
    protect::Sources,
    slow::SlowWays,
    ways::Ways,
};
pub use self::{
    links::Hook,
    object::{detach_pinned, pin_pass},
};
use super::{
    BackendKey, CaptureQuery, DataPlane, DataPlaneError, FlowPage, FlowQuery, Plan, Repairs,
    Snapshot, TableInfo, Why, WhyQuery,
    plan::BackendState,
    rate::Rates,
    silence::{Silence, Watch},
    switching::Switching,
};
use crate::model::{
    FlowTimeouts, Neighbour, ProbePath, ProbeStyle, Protection, Runtime, ServiceId, Target,
};

/// After this time no packet is in the program any more that began before it.
const GRACE: Duration = Duration::from_secs(1);
/// Counts of flows in a snapshot are at most this old: walking the tables takes milliseconds.
const STALE: Duration = Duration::from_millis(100);
/// An identifier rests at least this long; longer if a flow time-out is longer.
const MIN_REST: Duration = Duration::from_secs(900);

/// The XDP data plane.
pub struct Xdp {
    object: Object,
    tables: Vec<TableInfo>,
    /// Maps that only the program writes, held open for as long as it runs.
    probes: Probes,
    slow_ways: SlowWays,
    _kept: [Map; 2],
    control: ControlElement,
    took_over: bool,
    services: MappedArray<ServiceBucket>,
    vips: MappedArray<VipBucket>,
    ranges: MappedArray<PortRange>,
    details: MappedArray<ServiceDetail>,
    backends: MappedArray<Backend>,
    tunnels: MappedArray<Tunnel>,
    loads: MappedArray<Load>,
    identities: Identities,
    rings: MappedArray<RingChunk>,
    cursors: MappedArray<Cursor>,
    spill: BpfHash<MapData, u64, u64>,
    wide_spill: BpfHash<MapData, PodWideKey, u64>,
    sticky: BpfHash<MapData, PodStickyKey, u64>,
    sticky_new: BpfHash<MapData, PodStickyKey, u64>,
    devices: DevMapHash<MapData>,
    vlans: OwnVlans,
    ways: Ways,
    /// Interfaces that frames for this host come in by.
    entries: BTreeSet<u32>,
    stats: PerCpuArray<MapData, PodCounters>,
    reasons: PerCpuArray<MapData, u64>,
    sources: Sources,
    source_rates: BpfHash<MapData, PodAddress, u64>,
    events: Events,
    capture: Capture,
    flows: Flows,
    clock: Clock,
    epoch: Instant,
    service_ids: Ids<ServiceId>,
    backend_ids: Ids<BackendKey>,
    neighbours: HashMap<IpAddr, Neighbour>,
    plan: Plan,
    image: Option<Image>,
    generation: u64,
    switched: Option<Instant>,
    /// Active and inactive flows by backend id, from the last sweep.
    flow_counts: HashMap<u16, (u64, u64)>,
    swept: Option<Instant>,
    /// Rates by backend id.
    rates: HashMap<u16, Rates>,
    unanswered: Watch,
}

impl Xdp {
    /// Runs the program once on `frame` as if it came in on interface `ifindex`, and returns the
    /// XDP action with the frame as it left. Counters and flows move as for a real packet.
    pub fn run(&mut self, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>), DataPlaneError> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, frame.len() as u32, 0, ifindex, 0, 0];
        let context: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        let mut out = vec![0xa5; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (ifindex != 0).then_some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self
            .object
            .program()?
            .test_run(options)
            .map_err(|e| map_error("run the program", &e))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Runs one of the classifiers of health checks on a frame of a socket with `mark`; returns the frame
    /// afterwards.
    pub fn run_probe(
        &mut self,
        outgoing: bool,
        frame: &[u8],
        mark: u32,
    ) -> Result<Vec<u8>, DataPlaneError> {
        self.object
            .run_probe(outgoing, frame, mark)
            .map_err(|e| map_error("run a classifier", &e))
    }

    /// The loaded program, for the benchmark's tail calls.
    pub fn program(&mut self) -> Result<&mut aya::programs::Xdp, DataPlaneError> {
        self.object.program()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

impl DataPlane for Xdp {
    fn apply(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        if self.image.is_some() && self.plan == *plan {
            return Ok(self.generation);
        }
        for service in &plan.services {
            let lack = service.xdp_lacks();
            if let Some(what) = lack {
                return Err(DataPlaneError::Lacks {
                    plane: "XDP",
                    service: service.id.to_string(),
                    what,
                });
            }
        }
        let bonds = plan
            .services
            .iter()
            .filter_map(|service| service.persistence);
        let longest = bonds.map(|bond| bond.timeout).max().unwrap_or_default();
        self.service_ids.rest_at_least(longest);
        self.backend_ids.rest_at_least(longest);
        self.assign_ids(plan)?;
        let image = Image::build(
            plan,
            |s| {
                self.service_ids
                    .get(&plan.services[s].id)
                    .unwrap_or_default()
            },
            |s, b| {
                let service = &plan.services[s];
                let backend = &service.backends[b];
                self.backend_id(&(service.id, backend.target, backend.sorry))
            },
            self.clock.tick_ns(),
        )
        .map_err(|full| DataPlaneError::Exhausted(full.0))?;
        // Those that may be chosen exist before anybody can choose them.
        for service in &plan.services {
            for backend in service
                .backends
                .iter()
                .filter(|b| b.state != BackendState::Down)
            {
                self.write_backend(service, backend);
            }
        }
        if self.image.as_ref() != Some(&image) {
            let spare = 1 - (self.control.live() & 1);
            self.wait_for_readers();
            self.write_generation(&image, spare);
            self.control.switch_to(spare);
            self.switched = Some(Instant::now());
            self.generation += 1;
            self.image = Some(image);
        }
        // Those that nobody chooses any more let go of their flows afterwards.
        for service in &plan.services {
            for backend in service
                .backends
                .iter()
                .filter(|b| b.state == BackendState::Down)
            {
                self.write_backend(service, backend);
            }
        }
        let now = self.now();
        let wanted: HashSet<BackendKey> = plan.services.iter().flat_map(keys).collect();
        for (_, id) in self.backend_ids.retain(|key| wanted.contains(key), now) {
            let mut element = self.backends.load(usize::from(id));
            let clear = Backend::new(element.destination_mac(), element.source_mac(), 0, 0, 0);
            element.destination = clear.destination;
            self.backends.store(usize::from(id), &element);
        }
        self.service_ids
            .retain(|id| plan.services.iter().any(|s| s.id == *id), now);
        self.plan = plan.clone();
        Ok(self.generation)
    }

    fn took_over(&self) -> bool {
        self.took_over
    }

    fn set_role(&mut self, role: u16, serving: bool) {
        self.control.set_role(role, serving);
    }

    fn set_neighbour(&mut self, address: IpAddr, neighbour: Option<Neighbour>) {
        let known = match neighbour {
            Some(neighbour) => self.neighbours.insert(address, neighbour) == Some(neighbour),
            None => self.neighbours.remove(&address).is_none(),
        };
        if known {
            return;
        }
        let plan = std::mem::take(&mut self.plan);
        for service in &plan.services {
            for backend in &service.backends {
                if backend.target == Target::Host(address) {
                    self.write_backend(service, backend);
                }
            }
        }
        self.plan = plan;
    }

    fn set_timeouts(&mut self, timeouts: &FlowTimeouts) {
        self.control.set_timeouts(timeouts);
        self.service_ids.rest_at_least(rest(timeouts));
        self.backend_ids.rest_at_least(rest(timeouts));
    }

    fn probe_style(&self) -> Option<ProbeStyle> {
        let rewritten = Some(ProbeStyle::Rewritten);
        rewritten.filter(|_| self.object.no_probes().is_none())
    }

    fn set_probes(&mut self, paths: &[ProbePath], _: &[String]) -> Result<(), DataPlaneError> {
        if let Some(reason) = self.object.no_probes() {
            return Err(DataPlaneError::NoProbes(reason.to_owned()));
        }
        self.probes.follow(paths);
        Ok(())
    }

    fn set_receive_mtu(&mut self, mtu: u32) {
        self.ways.follow_receive_mtu(mtu);
    }

    fn set_own_addresses(&mut self, macs: &[(u32, [u8; 6])], vlans: &[(u32, [u16; 2])]) {
        self.entries = macs.iter().map(|(ifindex, _)| *ifindex).collect();
        self.control.follow_macs(macs);
        self.vlans.follow(&self.control, vlans);
    }

    fn follow_interfaces(&mut self, present: &[(String, u32)]) {
        self.object.follow(present);
    }

    fn set_protection(&mut self, protection: &Protection) -> Result<(), DataPlaneError> {
        self.sources.follow(&self.control, protection)
    }

    fn snapshot(&mut self) -> Snapshot {
        if self.swept.is_none_or(|at| at.elapsed() >= STALE) {
            self.sweep();
        }
        Snapshot {
            kind: "xdp".to_owned(),
            choice: String::new(),
            interfaces: self.object.attachments(),
            generation: self.generation,
            flow_slots: self.flows.slots()[0],
            flow_tables: self.flow_tables(),
            services: self
                .plan
                .services
                .iter()
                .map(|s| self.service_snapshot(s))
                .collect(),
            passed: self.passed(),
            sync: None,
            repairs: Repairs::default(),
            trouble: self.trouble(),
            switching: Switching::default(),
            slow_path: None,
        }
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.tables.clone()
    }

    fn dump(&self, table: &str) -> Option<Vec<serde_json::Value>> {
        dump::entries(self, table)
    }

    fn flows(&self, query: &FlowQuery) -> Result<FlowPage, String> {
        self.answer_flows(query)
    }

    fn why(&self, query: &WhyQuery) -> Result<Why, String> {
        self.answer_why(query)
    }

    fn capture(&mut self, query: &CaptureQuery) -> Result<mpsc::Receiver<Vec<u8>>, String> {
        self.start_capture(query)
    }

    fn sweep(&mut self) {
        self.end_capture();
        self.sweep_flows();
        self.follow_ways();
        self.update_rates();
        self.swept = Some(Instant::now());
    }

    fn silent(&self) -> Vec<(BackendKey, Silence)> {
        self.silent_backends()
    }

    fn detach(&mut self) -> Result<(), DataPlaneError> {
        self.control.serve_nothing();
        self.object
            .remove()
            .map_err(|e| map_error("remove the pins", &e))
    }
}

/// Removes the program and the maps that a daemon with another data plane left, if it left any.
pub fn remove_leftovers(runtime: &Runtime) -> Result<bool, DataPlaneError> {
    if !runtime.pin_path.exists() {
        return Ok(false);
    }
    let pins = Pins::lock(&runtime.pin_path)?;
    let any = !pins.names().is_empty();
    pins.remove_all()
        .map_err(|e| map_error("remove the pins of an earlier lbd", &e))?;
    Ok(any)
}

/// How long an identifier must rest: no flow lives longer in silence.
fn rest(timeouts: &FlowTimeouts) -> Duration {
    [
        timeouts.tcp,
        timeouts.tcp_closing,
        timeouts.tcp_half_open,
        timeouts.udp,
    ]
    .into_iter()
    .fold(MIN_REST, Duration::max)
}
