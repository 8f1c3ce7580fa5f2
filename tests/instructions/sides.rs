//! The programs that are measured, IPVS, and the traffic for them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp as AyaXdp, XdpMode},
};
use lb_common::bench::Traffic;
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        ipvs::Ipvs,
        plan::{BackendState, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{
        DataplaneConfig, FlowTimeouts, Hop, Mode, Neighbour, Protection, Protocol, Runtime,
        Scheduler, ServiceId,
    },
};

use crate::ground::{self, DIRECTOR_MAC, FAR_END, VIP, Way, server};

/// Where the guest has the benchmark's programs.
const OBJECT: &str = "/opt/lbd/lb-bench.o";
/// As many frames as a driver takes at once (NAPI_POLL_WEIGHT).
const BATCH: u32 = 64;
/// What the last measurement set off has ended after so long. Nobody waits: the guest's clock jumps
/// while it has nothing to do. IPVS sums up its counters every two seconds.
const SETTLE: Duration = Duration::from_secs(3);

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodTraffic(Traffic);
// SAFETY: integers only, `repr(C)`, no padding.
unsafe impl Pod for PodTraffic {}

/// Who gets the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The XDP program.
    Product,
    /// The stack, and so IPVS.
    Ipvs,
    /// Nobody.
    Drop,
    /// A program that sends frames back as they are.
    Transmit,
    /// The simplest load balancer: service hash, LRU hash of flows, MAC addresses.
    Textbook,
}

impl Target {
    /// All of them, with their programs in the benchmark's object.
    const ALL: [(Target, Option<&'static str>); 5] = [
        (Target::Product, None),
        (Target::Ipvs, Some("pass_all")),
        (Target::Drop, Some("drop_all")),
        (Target::Transmit, Some("floor_tx")),
        (Target::Textbook, Some("textbook")),
    ];
}

/// The kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Segments of one connection.
    Established,
    /// SYNs of one client's ports.
    NewFlows,
    /// SYNs of random addresses.
    SynFlood,
}

pub struct Bench {
    ebpf: Ebpf,
    traffic: Array<MapData, PodTraffic>,
    _targets: ProgramArray<MapData>,
    xdp: Xdp,
    ipvs: Ipvs,
    ifindex: u32,
}

fn load<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut AyaXdp> {
    let program: &mut AyaXdp = ebpf.program_mut(name).context(name)?.try_into()?;
    program.load()?;
    Ok(program)
}

impl Bench {
    /// Loads everything and makes the connection that is established.
    pub fn new() -> Result<Self> {
        let ifindex = ground::ifindex()?;
        let mut ebpf = EbpfLoader::new().load_file(OBJECT)?;
        let mut xdp = product(ifindex)?;
        let mut targets: ProgramArray<_> =
            ebpf.take_map("targets").context("targets")?.try_into()?;
        for (target, name) in Target::ALL {
            let index = target as u32;
            match name {
                // The guest's kernel takes the program for frames in several buffers, as are the others.
                None => targets.set(index, xdp.program()?.fd()?, 0)?,
                Some(name) => targets.set(index, load(&mut ebpf, name)?.fd()?, 0)?,
            }
        }
        let sink: &mut AyaXdp = ebpf.program_mut("drop_all").context("sink")?.try_into()?;
        sink.attach(FAR_END, XdpMode::Driver)?;
        load(&mut ebpf, "wrapper")?;
        textbook(&mut ebpf)?;
        let mut ipvs = Ipvs::start(&timeouts(), &runtime())?;
        ipvs.apply(&plan())?;
        let traffic = ebpf.take_map("traffic").context("traffic")?.try_into()?;
        let mut bench = Self {
            ebpf,
            traffic,
            _targets: targets,
            xdp,
            ipvs,
            ifindex,
        };
        for target in [Target::Product, Target::Ipvs, Target::Textbook] {
            bench.run(target, Stream::Established, 0, 1, 0x02)?;
            bench.run(target, Stream::Established, 0, 2, 0x10)?;
        }
        Ok(bench)
    }

    /// Instructions a packet; fails unless every one arrived where it should. Each round has flows of its
    /// own.
    pub fn cost(
        &mut self,
        target: Target,
        way: Way,
        stream: Stream,
        round: u32,
        packets: u32,
    ) -> Result<f64> {
        ground::lead(way)?;
        let round = round + if way == Way::Nowhere { 8 } else { 0 };
        // Flows that are over are not looked for again.
        self.xdp.sweep();
        thread::sleep(SETTLE);
        let before = (ground::arrived()?, self.scheduled());
        let flags = if stream == Stream::Established {
            0x10
        } else {
            0x02
        };
        let cost = self.run(target, stream, round, packets, flags)?;
        // The far end works a moment later.
        thread::sleep(SETTLE);
        let after = (ground::arrived()?, self.scheduled());
        let seen = [0, 1].map(|end| after.0[end] - before.0[end]);
        let all = u64::from(packets);
        let expected = match (target, way) {
            (Target::Drop, _) => [0, 0],
            (_, Way::Veth) => [all, 0],
            (_, Way::Nowhere) => [0, all],
        };
        ensure!(
            seen == expected,
            "of {packets} packets ({target:?}) {seen:?} arrived instead of {expected:?}"
        );
        let made = after.1 - before.1;
        let new = match (target, stream) {
            (Target::Ipvs, Stream::NewFlows | Stream::SynFlood) => all,
            (_, _) => 0,
        };
        // A few random addresses come twice.
        ensure!(
            made <= new && made + 20 >= new,
            "IPVS scheduled {made} connections ({target:?}) instead of {new}"
        );
        Ok(cost)
    }

    /// Connections that IPVS has made so far.
    fn scheduled(&mut self) -> u64 {
        let services = self.ipvs.snapshot().services;
        services
            .first()
            .map_or(0, |service| service.total.connections)
    }

    fn run(
        &mut self,
        target: Target,
        stream: Stream,
        round: u32,
        packets: u32,
        flags: u8,
    ) -> Result<f64> {
        let low = u8::try_from(round)?;
        let (client, flow_mask, client_mask, port_bits) = match stream {
            Stream::Established => ([172, 16, 0, 1], 0, [0; 4], 14),
            Stream::NewFlows => ([172, 16, 1 + low, 1], 0x3fff, [0; 4], 14),
            // Random ones that are no groups and nobody's own.
            Stream::SynFlood => ([16, 0, 0, 0], u32::MAX, [15, 255, 255, 255], 0),
        };
        let frame = frame(flags, client);
        let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        let traffic = Traffic {
            next: round * packets,
            flow_mask,
            target: target as u32,
            client: u32::from_ne_bytes(client),
            client_mask: u32::from_ne_bytes(client_mask),
            destination: [word(0), word(2), word(4)],
            source: [word(6), word(8), word(10)],
            checksum: word(24),
            port_bits,
            reserved: [0; 2],
        };
        self.traffic.set(0, PodTraffic(traffic), 0)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, u32::try_from(frame.len())?, 0, self.ifindex, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let wrapper: &mut AyaXdp = self
            .ebpf
            .program_mut("wrapper")
            .context("wrapper")?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(packets)),
            ..TestRunOptions::default()
        };
        let result = wrapper.test_run(options)?;
        // The kernel's own figure, a mean over all frames. Around the call is no place to measure: the call waits
        // for RCU, and so for a tick of the clock, which is 200 instructions of each of 20,000 packets.
        Ok(result.duration.as_nanos() as f64)
    }

    /// Removes what is ours from the kernel.
    pub fn remove(mut self) -> Result<()> {
        Ok(self.ipvs.detach()?)
    }
}

fn timeouts() -> FlowTimeouts {
    FlowTimeouts {
        tcp: Duration::from_secs(900),
        tcp_closing: Duration::from_secs(120),
        tcp_half_open: Duration::from_secs(60),
        udp: Duration::from_secs(300),
    }
}

fn runtime() -> Runtime {
    Runtime {
        socket: "/run/bench.sock".into(),
        pin_path: "/sys/fs/bpf/bench".into(),
        script_user: "nobody".to_owned(),
        notify_fifo: None,
    }
}

/// Four real servers, `wrr`.
fn plan() -> Plan {
    let target = |last| lb_user::model::Target::Host(server(last).into());
    let backends = (2..=5)
        .map(|last| PlannedBackend::new(target(last), 1, BackendState::Up))
        .collect();
    let id = ServiceId::new(Protocol::Tcp, SocketAddr::new(VIP.into(), 80));
    Plan::of(vec![PlannedService::new(id, 0, Scheduler::Wrr, backends)])
}

/// The product as it is by default, attached to nothing.
fn product(ifindex: u32) -> Result<Xdp> {
    let config = DataplaneConfig {
        interfaces: Vec::new(),
        mode: Mode::Xdp,
        allow_generic: false,
        flow_slots: lb_common::limits::DEFAULT_FLOW_SLOTS,
        max_flow_slots: lb_common::limits::DEFAULT_FLOW_SLOTS,
        timeouts: timeouts(),
        protection: Protection::default(),
    };
    let mut xdp = Xdp::unattached(&config)?;
    xdp.set_own_addresses(&[(ifindex, DIRECTOR_MAC)], &[]);
    xdp.apply(&plan())?;
    for last in 2..=5 {
        let hop = Hop::on_link([2, 0, 0, 0, 0, last], ifindex, DIRECTOR_MAC);
        let address: IpAddr = server(last).into();
        xdp.set_neighbour(address, Some(Neighbour::Host(hop)));
    }
    Ok(xdp)
}

/// What the textbook looks up.
fn textbook(ebpf: &mut Ebpf) -> Result<()> {
    let vip = u64::from(u32::from_ne_bytes(VIP.octets()));
    let key = vip << 32 | u64::from(80_u16.to_be()) << 16 | 6;
    let map = ebpf.map_mut("text_services").context("text_services")?;
    HashMap::<_, u64, u32>::try_from(map)?.insert(key, 1, 0)?;
    let map = ebpf.map_mut("text_backends").context("text_backends")?;
    let mut backends = Array::<_, u64>::try_from(map)?;
    for index in 0..4 {
        backends.set(index, 0x0100_0000_0002 + u64::from(index), 0)?;
    }
    Ok(())
}

/// A TCP segment of a client in a frame of 64 bytes.
fn frame(flags: u8, client: [u8; 4]) -> Vec<u8> {
    let mut frame = [&DIRECTOR_MAC[..], &[2, 0, 0, 0, 9, 9], &[8, 0]].concat();
    let mut header = [0; 20];
    header[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
    header[12..16].copy_from_slice(&client);
    header[16..].copy_from_slice(&Ipv4Addr::octets(&VIP));
    let sum = lb_common::checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags]);
    frame.extend([0; 6]);
    frame.resize(64, 0);
    frame
}
