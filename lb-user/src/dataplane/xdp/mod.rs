//! The XDP data plane: BPF maps filled so that the program finds every answer ready.
//!
//! Two generations of services and rings lie side by side. [`Xdp::apply`] writes the one that is
//! not live and then stores its number in the control element; packets see the old configuration
//! or the new one, never a mixture. Backends belong to no generation: their elements change in
//! place, word by word, and their ids stay reserved while flows may hold them.

mod clock;
mod control;
mod dump;
mod flows;
mod ids;
mod image;
mod mapped;
mod maps;
mod object;
mod pins;
mod snapshot;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use aya::{
    maps::{ArrayOfMaps, DevMapHash, HashMap as BpfHash, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{TestRun, TestRunOptions},
};
use lb_common::{
    Backend, BackendCounters, BackendFlags, Control, RingChunk, Service, ServiceKey,
    limits::{GENERATIONS, MAX_BACKENDS, MAX_SERVICES, RING_CHUNKS_PER_GENERATION},
    table::Cursor,
};

pub use self::object::pin_pass;
use self::{
    clock::Clock,
    control::ControlElement,
    flows::Flows,
    ids::Ids,
    image::Image,
    mapped::MappedArray,
    maps::{PodCounters, PodKey, PodService, adopt, key_bytes, map_data, mapped},
    object::{Object, map_error},
    pins::Pins,
};
use super::{
    BackendKey, DataPlane, DataPlaneError, Plan, Snapshot, TableInfo,
    plan::{BackendState, PlannedService},
};
use crate::model::{DataplaneConfig, FlowTimeouts, Neighbour, Runtime, ServiceId, Target};

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
    control: ControlElement,
    took_over: bool,
    services: BpfHash<MapData, PodKey, PodService>,
    backends: MappedArray<Backend>,
    rings: MappedArray<RingChunk>,
    cursors: MappedArray<Cursor>,
    spill: BpfHash<MapData, u64, u64>,
    devices: DevMapHash<MapData>,
    stats: PerCpuArray<MapData, PodCounters>,
    reasons: PerCpuArray<MapData, u64>,
    flows: Flows,
    clock: Clock,
    epoch: Instant,
    service_ids: Ids<ServiceId>,
    backend_ids: Ids<BackendKey>,
    neighbours: HashMap<Ipv4Addr, Neighbour>,
    plan: Plan,
    image: Option<Image>,
    generation: u64,
    switched: Option<Instant>,
    /// Active and inactive flows by backend id, from the last sweep.
    flow_counts: HashMap<u16, (u64, u64)>,
    swept: Option<Instant>,
}

impl Xdp {
    /// Loads the program and attaches it to the configured interfaces. Nothing is served before
    /// a plan is applied and a role is set.
    pub fn start(config: &DataplaneConfig, runtime: &Runtime) -> Result<Self, DataPlaneError> {
        let pins = Pins::lock(&runtime.pin_path)?;
        let fresh = pins.names().is_empty();
        let mut object = Object::load(Some(pins))?;
        let started = Self::open(&mut object, config).and_then(|parts| {
            object.attach(config)?;
            Ok(parts)
        });
        match started {
            Ok(open) => Ok(open(object)),
            Err(error) => {
                // Nothing stays behind of a start that failed; what was there before it does.
                if fresh {
                    let _ = object.remove();
                }
                Err(error)
            }
        }
    }

    /// Loads the program without attaching it anywhere, for [`Xdp::run`].
    pub fn unattached(config: &DataplaneConfig) -> Result<Self, DataPlaneError> {
        let mut object = Object::load(None)?;
        let open = Self::open(&mut object, config)?;
        Ok(open(object))
    }

    /// Maps and prepares everything; what is returned only needs the object.
    fn open(
        object: &mut Object,
        config: &DataplaneConfig,
    ) -> Result<impl FnOnce(Object) -> Self + use<>, DataPlaneError> {
        let mut tables = Vec::new();
        let mut take = |name: &str| {
            let map = object.take_map(name)?;
            if let Some(info) = map_data(&map).and_then(|data| data.info().ok()) {
                tables.push(dump::describe(name, &info));
            }
            Ok::<Map, DataPlaneError>(map)
        };
        let fails = |what: &'static str| move |e: aya::maps::MapError| map_error(what, &e);
        let control: MappedArray<Control> = mapped(&take("control")?, 1)?;
        let services = BpfHash::try_from(take("services")?).map_err(fails("open map services"))?;
        let backends: MappedArray<Backend> = mapped(&take("backends")?, MAX_BACKENDS)?;
        let rings = mapped(&take("rings")?, RING_CHUNKS_PER_GENERATION * GENERATIONS)?;
        let cursors = mapped(&take("cursors")?, MAX_SERVICES)?;
        let mut outer: ArrayOfMaps<MapData> =
            take("flows")?.try_into().map_err(fails("open map flows"))?;
        let spill = take("spill")?.try_into().map_err(fails("open map spill"))?;
        let devices = take("devices")?
            .try_into()
            .map_err(fails("open map devices"))?;
        let stats = take("backend_stats")?
            .try_into()
            .map_err(fails("open map backend_stats"))?;
        let reasons = take("reasons")?
            .try_into()
            .map_err(fails("open map reasons"))?;
        let mut clock = Clock::new();
        let flows = Flows::open(&mut outer, config.flow_slots)?;
        let took_over = ControlElement::is_ready(&control);
        let control = ControlElement::prepare(control, clock, flows.masks(), &config.timeouts);
        clock
            .synchronise(object.clock()?)
            .map_err(|e| map_error("read the program's clock", &e))?;
        let rest = rest(&config.timeouts);
        let mut service_ids = Ids::new((MAX_SERVICES - 1) as u16, rest);
        let mut backend_ids = Ids::new((MAX_BACKENDS - 1) as u16, rest);
        adopt(&services, &backends, &mut service_ids, &mut backend_ids);
        Ok(move |object| Self {
            object,
            tables,
            control,
            took_over,
            services,
            backends,
            rings,
            cursors,
            spill,
            devices,
            stats,
            reasons,
            flows,
            clock,
            epoch: Instant::now(),
            service_ids,
            backend_ids,
            neighbours: HashMap::new(),
            plan: Plan::default(),
            image: None,
            generation: 0,
            switched: None,
            flow_counts: HashMap::new(),
            swept: None,
        })
    }

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

    /// The loaded program, for the benchmark's tail calls.
    pub fn program(&mut self) -> Result<&mut aya::programs::Xdp, DataPlaneError> {
        self.object.program()
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Gives every service and backend of the plan its id, and fresh ones clean counters.
    fn assign_ids(&mut self, plan: &Plan) -> Result<(), DataPlaneError> {
        let now = self.now();
        for service in &plan.services {
            self.service_ids
                .assign(service.id, now)
                .map_err(|_| DataPlaneError::Exhausted("service"))?;
            for key in keys(service) {
                let (id, fresh) = self
                    .backend_ids
                    .assign(key, now)
                    .map_err(|_| DataPlaneError::Exhausted("real server"))?;
                if fresh {
                    self.zero_counters(id)?;
                }
            }
        }
        Ok(())
    }

    fn zero_counters(&mut self, id: u16) -> Result<(), DataPlaneError> {
        let fails = |e: &dyn std::fmt::Display| map_error("clear a backend's counters", e);
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| fails(&e))?;
        let zeros = PerCpuValues::try_from(vec![PodCounters(BackendCounters::default()); cpus])
            .map_err(|e| fails(&e))?;
        self.stats
            .set(u32::from(id), zeros, 0)
            .map_err(|e| fails(&e))
    }

    fn backend_id(&self, key: &BackendKey) -> u16 {
        self.backend_ids.get(key).unwrap_or_default()
    }

    /// Writes a backend's element as state and neighbour are now.
    fn write_backend(&mut self, key: &BackendKey, state: BackendState) {
        let (service, target, sorry) = *key;
        let id = self.backend_id(key);
        let service_id = self.service_ids.get(&service).unwrap_or_default();
        let mut flags = if state == BackendState::Down {
            0
        } else {
            BackendFlags::ALIVE
        };
        let mut identity = u64::from(service_id) << 32 | if sorry { Backend::SORRY } else { 0 };
        let mut neighbour = None;
        match target {
            Target::Local => flags |= BackendFlags::LOCAL,
            Target::Host(address) => {
                identity |= Backend::HOST | u64::from(u32::from(address));
                neighbour = self.neighbours.get(&address).copied();
            }
        }
        let element = match neighbour {
            Some(Neighbour::ThisHost) => {
                Backend::new([0; 6], [0; 6], 0, flags | BackendFlags::LOCAL, identity)
            }
            // The device is known to the kernel before any packet is sent to it.
            Some(Neighbour::Host {
                mac,
                ifindex,
                source_mac,
            }) if self.register(ifindex) => Backend::new(
                mac,
                source_mac,
                ifindex,
                flags | BackendFlags::RESOLVED,
                identity,
            ),
            Some(Neighbour::Host { .. }) | None => {
                // Only the flags go: a packet that saw them a moment ago finds the rest intact.
                let old = self.backends.load(usize::from(id));
                let clear =
                    Backend::new(old.destination_mac(), old.source_mac(), 0, flags, identity);
                Backend {
                    ifindex: old.ifindex,
                    ..clear
                }
            }
        };
        if self.backends.load(usize::from(id)) != element {
            self.backends.store(usize::from(id), &element);
        }
    }

    /// Makes an interface known as a way out. Says whether that worked.
    fn register(&mut self, ifindex: u32) -> bool {
        if self.devices.get(ifindex, 0).is_ok() {
            return true;
        }
        let result = self.devices.insert(ifindex, ifindex, None, 0);
        if let Err(error) = &result {
            tracing::error!(ifindex, %error, "cannot register an interface for redirection; its packets pass");
        }
        result.is_ok()
    }

    /// Fills the generation that is not live.
    fn write_generation(&mut self, image: &Image, spare: u32) -> Result<(), DataPlaneError> {
        let first = (spare * RING_CHUNKS_PER_GENERATION) as usize;
        for (index, chunk) in image.chunks.iter().enumerate() {
            if self.rings.load(first + index) != *chunk {
                self.rings.store(first + index, chunk);
            }
        }
        let wanted: BTreeMap<[u8; 8], (ServiceKey, Service)> = image
            .placed(spare)
            .map(|(key, service)| (key_bytes(key), (key, service)))
            .collect();
        let fails = |what: &'static str| move |e: aya::maps::MapError| map_error(what, &e);
        let present: Vec<ServiceKey> = self
            .services
            .keys()
            .filter_map(|key| key.ok().map(|pod| pod.0))
            .filter(|key| u32::from(key.generation) == spare)
            .collect();
        for key in present {
            if !wanted.contains_key(&key_bytes(key)) {
                self.services
                    .remove(&PodKey(key))
                    .map_err(fails("remove a service"))?;
            }
        }
        for (key, service) in wanted.into_values() {
            let same = self
                .services
                .get(&PodKey(key), 0)
                .is_ok_and(|pod| pod.0 == service);
            if !same {
                self.services
                    .insert(PodKey(key), PodService(service), 0)
                    .map_err(fails("write a service"))?;
            }
        }
        Ok(())
    }

    /// Waits until no packet can still be reading the generation that was live before.
    fn wait_for_readers(&self) {
        if self.switched.is_some_and(|at| at.elapsed() < GRACE) {
            const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
            // SAFETY: membarrier takes no pointers. The global command is synchronize_rcu(), and
            // XDP programs run in RCU read-side critical sections.
            let result =
                unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
            if result != 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

impl DataPlane for Xdp {
    fn apply(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        if self.image.is_some() && self.plan == *plan {
            return Ok(self.generation);
        }
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
        );
        // Those that may be chosen exist before anybody can choose them.
        let states: Vec<(BackendKey, BackendState)> = plan
            .services
            .iter()
            .flat_map(|service| keys(service).zip(service.backends.iter().map(|b| b.state)))
            .collect();
        for (key, state) in states
            .iter()
            .filter(|(_, state)| *state != BackendState::Down)
        {
            self.write_backend(key, *state);
        }
        if self.image.as_ref() != Some(&image) {
            let spare = 1 - (self.control.live() & 1);
            self.wait_for_readers();
            self.write_generation(&image, spare)?;
            self.control.switch_to(spare);
            self.switched = Some(Instant::now());
            self.generation += 1;
            self.image = Some(image);
        }
        // Those that nobody chooses any more let go of their flows afterwards.
        for (key, state) in states
            .iter()
            .filter(|(_, state)| *state == BackendState::Down)
        {
            self.write_backend(key, *state);
        }
        let now = self.now();
        let wanted: HashSet<BackendKey> = states.iter().map(|(key, _)| *key).collect();
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

    fn set_neighbour(&mut self, address: Ipv4Addr, neighbour: Option<Neighbour>) {
        let known = match neighbour {
            Some(neighbour) => self.neighbours.insert(address, neighbour) == Some(neighbour),
            None => self.neighbours.remove(&address).is_none(),
        };
        if known {
            return;
        }
        let touched: Vec<(BackendKey, BackendState)> = self
            .plan
            .services
            .iter()
            .flat_map(|service| keys(service).zip(service.backends.iter().map(|b| b.state)))
            .filter(|((_, target, _), _)| *target == Target::Host(address))
            .collect();
        for (key, state) in touched {
            self.write_backend(&key, state);
        }
    }

    fn set_timeouts(&mut self, timeouts: &FlowTimeouts) {
        self.control.set_timeouts(timeouts);
        self.service_ids.rest_at_least(rest(timeouts));
        self.backend_ids.rest_at_least(rest(timeouts));
    }

    fn snapshot(&mut self) -> Snapshot {
        if self.swept.is_none_or(|at| at.elapsed() >= STALE) {
            self.sweep();
        }
        Snapshot {
            kind: "xdp".to_owned(),
            interfaces: self.object.attachments(),
            generation: self.generation,
            flow_slots: self.flows.slots(),
            services: self
                .plan
                .services
                .iter()
                .map(|s| self.service_snapshot(s))
                .collect(),
            passed: self.passed(),
        }
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.tables.clone()
    }

    fn dump(&self, table: &str) -> Option<Vec<serde_json::Value>> {
        dump::entries(self, table)
    }

    fn sweep(&mut self) {
        let mut counts: HashMap<u16, (u64, u64)> = HashMap::new();
        self.flows.sweep(self.clock.now(), |flow| {
            let count = counts.entry(flow.value.backend()).or_default();
            if flow.is_active() {
                count.0 += 1;
            } else {
                count.1 += 1;
            }
        });
        self.flow_counts = counts;
        self.swept = Some(Instant::now());
    }

    fn detach(&mut self) -> Result<(), DataPlaneError> {
        self.control.serve_nothing();
        self.object
            .remove()
            .map_err(|e| map_error("remove the pins", &e))
    }
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

fn keys(service: &PlannedService) -> impl Iterator<Item = BackendKey> + '_ {
    service
        .backends
        .iter()
        .map(|backend| (service.id, backend.target, backend.sorry))
}
