//! From nothing, or from what an earlier daemon left pinned, to a program that runs.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use aya::maps::{LpmTrie, Map};
use lb_common::{
    Backend, Control,
    flow::FlowTable,
    limits::{
        GENERATIONS, HALF_OPEN_BUCKETS, MAX_BACKENDS, MAX_PORT_RANGES, MAX_SERVICES,
        RING_CHUNKS_PER_GENERATION, SERVICE_BUCKETS, VIP_BUCKETS, VLAN_SETS,
    },
    probe::MAX_PROBES,
};

use super::{
    Xdp,
    capture::Capture,
    clock::Clock,
    control::ControlElement,
    dump,
    flows::{Chunk, Flows, Template},
    ids::Ids,
    links::Hook,
    mapped::MappedArray,
    maps::{Identities, map_data, mapped},
    object::{Object, map_error},
    own::OwnVlans,
    pins::Pins,
    probes::Probes,
    protect::Sources,
    rest,
    slow::SlowWays,
    ways::Ways,
};
use crate::{
    dataplane::{DataPlaneError, Plan, silence::Watch},
    model::{DataplaneConfig, Runtime},
};

impl Xdp {
    /// Loads the program and attaches it to the configured interfaces. Nothing is served before
    /// a plan is applied and a role is set. `after_ipvs`: an earlier daemon left connections to the kernel's
    /// IPVS, which are to come from there.
    pub fn start(
        config: &DataplaneConfig,
        runtime: &Runtime,
        hook: Hook,
        after_ipvs: bool,
    ) -> Result<Self, DataPlaneError> {
        let pins = Pins::lock(&runtime.pin_path)?;
        let left = pins.names();
        let mut object = Object::load(Some(pins))?;
        let mut xdp = match Self::open(&mut object, config) {
            Ok(open) => open(object),
            Err(error) => {
                // Nothing stays behind of a start that failed; what was there before it does.
                if left.is_empty() {
                    let _ = object.remove();
                }
                return Err(error);
            }
        };
        if after_ipvs && !left.iter().any(|name| name.starts_with("link-")) {
            xdp.forget_connections();
        }
        xdp.set_handover(after_ipvs);
        match xdp.object.attach(&config.interfaces, hook) {
            Ok(()) => Ok(xdp),
            Err(error) => {
                if left.is_empty() {
                    let _ = xdp.object.remove();
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
        let services = mapped(&take("services")?, SERVICE_BUCKETS * GENERATIONS)?;
        let vips = mapped(&take("vips")?, VIP_BUCKETS * GENERATIONS)?;
        let ranges = mapped(&take("port_ranges")?, MAX_PORT_RANGES * GENERATIONS)?;
        let details = mapped(&take("details")?, MAX_SERVICES * GENERATIONS)?;
        let backends: MappedArray<Backend> = mapped(&take("backends")?, MAX_BACKENDS)?;
        let tunnels = mapped(&take("tunnels")?, MAX_BACKENDS)?;
        let loads = mapped(&take("loads")?, MAX_BACKENDS)?;
        let identities = Identities(mapped(&take("identities")?, MAX_BACKENDS + MAX_SERVICES)?);
        let rings = mapped(&take("rings")?, RING_CHUNKS_PER_GENERATION * GENERATIONS)?;
        let cursors = mapped(&take("cursors")?, MAX_SERVICES)?;
        let narrow = take("flows")?.try_into().map_err(fails("open map flows"))?;
        let wide = take("wide_flows")?
            .try_into()
            .map_err(fails("open map wide_flows"))?;
        let spill = take("spill")?.try_into().map_err(fails("open map spill"))?;
        let wide_spill = take("wide_spill")?
            .try_into()
            .map_err(fails("open map wide_spill"))?;
        let sticky = take("sticky")?
            .try_into()
            .map_err(fails("open map sticky"))?;
        let sticky_new = take("sticky_new")?
            .try_into()
            .map_err(fails("open map sticky_new"))?;
        let devices = take("devices")?
            .try_into()
            .map_err(fails("open map devices"))?;
        let vlans = take("own_vlans")?
            .try_into()
            .map_err(fails("open map own_vlans"))?;
        let vlans = OwnVlans::open(vlans, mapped(&take("vlan_sets")?, VLAN_SETS)?);
        let stats = take("backend_stats")?
            .try_into()
            .map_err(fails("open map backend_stats"))?;
        let reasons = take("reasons")?
            .try_into()
            .map_err(fails("open map reasons"))?;
        let v4 = LpmTrie::try_from(take("sources4")?).map_err(fails("open map sources4"))?;
        let v6 = LpmTrie::try_from(take("sources6")?).map_err(fails("open map sources6"))?;
        let source_rates = take("source_rates")?
            .try_into()
            .map_err(fails("open map source_rates"))?;
        let kept = [take("fragments")?, take("probe_flows")?];
        let probes = Probes::new(mapped(&take("probe_targets")?, MAX_PROBES)?);
        let slow_ways = SlowWays::new(mapped(&take("slow_ways")?, MAX_BACKENDS)?);
        let events = take("events")?
            .try_into()
            .map_err(fails("open map events"))?;
        let mut clock = Clock::new();
        let half_open = |table: FlowTable| {
            let name = match table {
                FlowTable::UdpHalfOpen => "half_open_udp",
                FlowTable::WideTcpHalfOpen => "wide_open_tcp",
                FlowTable::WideUdpHalfOpen => "wide_open_udp",
                _ => "half_open_tcp",
            };
            let map = take(name)?;
            let data = map_data(&map)
                .ok_or_else(|| map_error("map a flow table", &std::io::Error::other("no array")))?;
            let chunk = Chunk::map(data, table.is_wide(), HALF_OPEN_BUCKETS)?;
            Ok((chunk, Template::of(data)?))
        };
        let [words, previous] = ControlElement::tables(&control);
        let flows = Flows::open(narrow, wide, half_open, words, previous, config)?;
        let took_over = ControlElement::is_ready(&control);
        let control = ControlElement::prepare(control, clock, flows.words(), &config.timeouts);
        clock
            .synchronise(object.clock()?)
            .map_err(|e| map_error("read the program's clock", &*e))?;
        let rest = rest(&config.timeouts);
        let mut service_ids = Ids::new((MAX_SERVICES - 1) as u16, rest);
        let mut backend_ids = Ids::new((MAX_BACKENDS - 1) as u16, rest);
        identities.adopt(&mut service_ids, &mut backend_ids);
        let mut sources = Sources::open(v4, v6);
        sources.follow(&control, &config.protection)?;
        Ok(move |object| Self {
            object,
            tables,
            probes,
            slow_ways,
            _kept: kept,
            control,
            took_over,
            services,
            vips,
            ranges,
            details,
            backends,
            tunnels,
            loads,
            identities,
            rings,
            cursors,
            spill,
            wide_spill,
            sticky,
            sticky_new,
            devices,
            vlans,
            ways: Ways::open(),
            entries: BTreeSet::new(),
            stats,
            reasons,
            sources,
            source_rates,
            events,
            capture: Capture::default(),
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
            rates: HashMap::new(),
            unanswered: Watch::default(),
        })
    }
}
