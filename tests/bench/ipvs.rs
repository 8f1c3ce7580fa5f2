//! `lbd-bench-ipvs OBJECT`: what a packet costs in the XDP program and in the kernel's IPVS, both with
//! direct return, in one guest. Run by `cargo xtask bench ipvs`.
//!
//! The guest's clock counts instructions (QEMU's icount), so figures do not depend on the host. Frames
//! come in as from a network card's driver (`BPF_PROG_RUN` with live frames) and leave to a sink that is
//! as cheap as there is: a device that throws away, and a pair of veths whose far end drops in XDP. What
//! it costs to make a frame and drop it at once is subtracted from both.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, ProgramArray},
    programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp as AyaXdp, XdpMode},
};
use clap::Parser;
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
        Scheduler, ServiceId, Target,
    },
};
use serde_json::json;

/// Measures packets in XDP and in IPVS.
#[derive(Parser)]
struct Arguments {
    /// The compiled benchmark programs.
    object: PathBuf,
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x43];
/// Packets of a measurement.
const PACKETS: u32 = 20_000;
/// New flows of a measurement: one client's ports, so that the header's checksum stays right.
const NEW_FLOWS: u32 = 16_000;
/// Measurements of each kind; the middle one counts.
const ROUNDS: u8 = 3;
/// As many frames as a driver takes at once (NAPI_POLL_WEIGHT).
const BATCH: u32 = 64;

/// Places in the wrapper's table of programs.
const PRODUCT: u32 = 3;
const PASS: u32 = 4;
const DROP: u32 = 5;

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodTraffic(Traffic);
// SAFETY: integers only, `repr(C)`, no padding.
unsafe impl Pod for PodTraffic {}

#[derive(Clone, Copy)]
enum Segment {
    Syn,
    Data,
}

struct Bench {
    ebpf: Ebpf,
    traffic: Array<MapData, PodTraffic>,
    _targets: ProgramArray<MapData>,
    _xdp: Xdp,
    ifindex: u32,
    wrapper: &'static str,
}

/// Wrapper, its table, and the two short programs, for frames in several buffers and in one: the kernel
/// does not mix the two kinds, and the product is of one or the other.
const KINDS: [[&str; 4]; 2] = [
    ["wrapper", "targets", "pass_all", "drop_all"],
    [
        "wrapper_linear",
        "linear_targets",
        "pass_linear",
        "drop_linear",
    ],
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    network()?;
    let mut bench = Bench::new(&arguments)?;
    let mut ipvs = Ipvs::start(&timeouts(), &runtime())?;
    ipvs.apply(&plan())?;

    let mut established: [Vec<f64>; 3] = Default::default();
    let mut new_flows: [Vec<f64>; 3] = Default::default();
    let client = [172, 16, 0, 1];
    for target in [PRODUCT, PASS] {
        bench.run(target, Segment::Syn, client, 0, 1)?;
        bench.run(target, Segment::Data, client, 0, 2)?;
    }
    for round in 0..ROUNDS {
        for (target, figures) in [DROP, PRODUCT, PASS].into_iter().zip(&mut established) {
            let cost = bench.sunk(target, Segment::Data, client, 0, PACKETS)?;
            figures.push(cost);
        }
        let client = [172, 16, 1 + round, 1];
        for (target, figures) in [DROP, PRODUCT, PASS].into_iter().zip(&mut new_flows) {
            let cost = bench.sunk(target, Segment::Syn, client, 0x3fff, NEW_FLOWS)?;
            figures.push(cost);
        }
    }
    let table = ipvs.snapshot().services;
    let scheduled = table.first().map_or(0, |service| service.total.connections);
    let net = |figures: &mut [Vec<f64>; 3]| {
        let [floor, xdp, ipvs] = figures.each_mut().map(|list| middle(list));
        (xdp - floor, ipvs - floor)
    };
    let (xdp, kernel) = net(&mut established);
    let (xdp_new, kernel_new) = net(&mut new_flows);
    let result = json!({
        "net_ratio": rounded(kernel / xdp),
        "instructions": { "established": rounded(xdp), "new-flows": rounded(xdp_new) },
        "ipvs_instructions": { "established": rounded(kernel), "new-flows": rounded(kernel_new) },
        "net_ratio_new_flows": rounded(kernel_new / xdp_new),
        "ipvs_connections_seen": scheduled,
    });
    println!("RESULT {result}");
    ipvs.detach()?;
    Ok(())
}

fn rounded(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn middle(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or_default()
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

fn server(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, last).into()
}

/// Four real servers, `wrr`.
fn plan() -> Plan {
    let backends = (2..=5)
        .map(|last| PlannedBackend::new(Target::Host(server(last)), 1, BackendState::Up))
        .collect();
    let id = ServiceId::new(Protocol::Tcp, SocketAddr::new(VIP.into(), 80));
    Plan::of(vec![PlannedService::new(id, 0, Scheduler::Wrr, backends)])
}

/// A way in, `in0`, whose far end drops; and a way to the real servers for IPVS that throws away.
fn network() -> Result<()> {
    let mac = "02:00:00:00:00:43";
    for line in [
        "link add in0 type veth peer name in1",
        &format!("link set in0 address {mac}"),
        "link set in0 up",
        "link set in1 up",
        "link add out0 type dummy",
        "address add 10.1.0.1/24 dev out0",
        "link set out0 up",
        &format!("address add {VIP}/32 dev lo"),
    ] {
        ip(line)?;
    }
    for last in 2..=5 {
        ip(&format!(
            "neigh replace 10.1.0.{last} lladdr 02:00:00:00:00:0{last} dev out0 nud permanent"
        ))?;
    }
    for name in ["all", "default", "in0", "out0"] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0")?;
    }
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    let words = arguments.split_whitespace();
    let status = Command::new("ip").args(words).status().context("ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}

fn number(path: &str) -> Result<u64> {
    Ok(fs::read_to_string(path)?.trim().parse()?)
}

/// Frames that came to an end: those that the veth's far end dropped, and those that the other device
/// threw away.
fn sunk() -> Result<(u64, u64)> {
    let output = Command::new("ethtool").args(["-S", "in1"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = text
        .lines()
        .filter(|line| line.contains("rx_queue_") && line.contains("xdp_drops"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    Ok((
        counted,
        number("/sys/class/net/out0/statistics/tx_packets")?,
    ))
}

fn load<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut AyaXdp> {
    let program: &mut AyaXdp = ebpf.program_mut(name).context(name)?.try_into()?;
    program.load()?;
    Ok(program)
}

impl Bench {
    fn new(arguments: &Arguments) -> Result<Self> {
        let ifindex = u32::try_from(number("/sys/class/net/in0/ifindex")?)?;
        let mut ebpf = EbpfLoader::new().load_file(&arguments.object)?;
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
            xdp.set_neighbour(server(last), Some(Neighbour::Host(hop)));
        }
        let mut chosen = None;
        for [wrapper, table, pass, drop] in KINDS {
            let mut targets: ProgramArray<_> = ebpf.take_map(table).context(table)?.try_into()?;
            // The first one decides which kind the table takes.
            if targets.set(PRODUCT, xdp.program()?.fd()?, 0).is_err() {
                continue;
            }
            if load(&mut ebpf, wrapper).is_err() {
                continue;
            }
            targets.set(PASS, load(&mut ebpf, pass)?.fd()?, 0)?;
            let sink = load(&mut ebpf, drop)?;
            targets.set(DROP, sink.fd()?, 0)?;
            sink.attach("in1", XdpMode::Driver)?;
            chosen = Some((wrapper, targets));
            break;
        }
        let (wrapper, targets) = chosen.context("no wrapper goes with the program")?;
        let traffic = ebpf.take_map("traffic").context("traffic")?.try_into()?;
        Ok(Self {
            ebpf,
            traffic,
            _targets: targets,
            _xdp: xdp,
            ifindex,
            wrapper,
        })
    }

    /// Instructions a packet; fails unless every one went where it should.
    fn sunk(
        &mut self,
        target: u32,
        segment: Segment,
        client: [u8; 4],
        mask: u32,
        packets: u32,
    ) -> Result<f64> {
        let before = sunk()?;
        let cost = self.run(target, segment, client, mask, packets)?;
        // The far end of the veth works a moment later.
        std::thread::sleep(Duration::from_millis(20));
        let after = sunk()?;
        let seen = (after.0 - before.0, after.1 - before.1);
        let all = u64::from(packets);
        let expected = match target {
            PRODUCT => (all, 0),
            PASS => (0, all),
            _ => (0, 0),
        };
        ensure!(
            seen == expected,
            "of {packets} packets (target {target}) {seen:?} arrived instead of {expected:?}"
        );
        let what = match target {
            PRODUCT => "XDP",
            PASS => "IPVS",
            _ => "dropped",
        };
        let flows = if mask == 0 { "one flow" } else { "new flows" };
        println!("{what}, {flows}: {cost:.1} instructions a packet, none lost");
        Ok(cost)
    }

    fn run(
        &mut self,
        target: u32,
        segment: Segment,
        client: [u8; 4],
        mask: u32,
        packets: u32,
    ) -> Result<f64> {
        let frame = frame(segment, client);
        let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        let traffic = Traffic {
            next: 0,
            flow_mask: mask,
            target,
            client: u32::from_ne_bytes(client),
            destination: [word(0), word(2), word(4)],
            source: [word(6), word(8), word(10)],
            checksum: word(24),
            reserved: [0; 5],
        };
        self.traffic.set(0, PodTraffic(traffic), 0)?;
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, u32::try_from(frame.len())?, 0, self.ifindex, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let wrapper: &mut AyaXdp = self
            .ebpf
            .program_mut(self.wrapper)
            .context(self.wrapper)?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(packets)),
            ..TestRunOptions::default()
        };
        let began = Instant::now();
        wrapper.test_run(options)?;
        Ok(began.elapsed().as_nanos() as f64 / f64::from(packets))
    }
}

/// A TCP segment of a client in a frame of 64 bytes.
fn frame(segment: Segment, client: [u8; 4]) -> Vec<u8> {
    let mut frame = [&DIRECTOR_MAC[..], &[2, 0, 0, 0, 9, 9], &[8, 0]].concat();
    let mut header = [0; 20];
    header[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
    header[12..16].copy_from_slice(&client);
    header[16..].copy_from_slice(&VIP.octets());
    let sum = lb_common::checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50]);
    frame.push(match segment {
        Segment::Syn => 0x02,
        Segment::Data => 0x10,
    });
    frame.extend([0; 6]);
    frame.resize(64, 0);
    frame
}
