//! The programs, their maps and their packets.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, ProgramArray},
    programs::{TestRun, TestRunOptions, Xdp as AyaXdp},
};
use lb_common::bench::Traffic;
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        plan::{BackendState, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{DataplaneConfig, FlowTimeouts, Neighbour, Protocol, Scheduler, ServiceId, Target},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const EVERY_PACKET: u32 = u32::MAX;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    FloorTx,
    FloorSwap,
    Textbook,
    Product,
    /// The product with tables for a million flows.
    ProductLarge,
}

/// One line of the result.
pub struct Case {
    /// As in the JSON file.
    pub name: &'static str,
    /// The textbook case of the ratio.
    pub against: &'static str,
    program: Program,
    flow_mask: u32,
    packet: Packet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    Data,
    Syn,
    NotAVip,
}

const fn case(
    name: &'static str,
    against: &'static str,
    program: Program,
    flows: u32,
    packet: Packet,
) -> Case {
    let flow_mask = if flows == EVERY_PACKET {
        u32::MAX
    } else {
        flows - 1
    };
    Case {
        name,
        against,
        program,
        flow_mask,
        packet,
    }
}

/// The wrapper's own cost comes first: it is subtracted from the others.
pub const CASES: [Case; 12] = [
    case("floor-tx", "textbook-1", Program::FloorTx, 1, Packet::Data),
    case(
        "floor-parse-swap",
        "textbook-1",
        Program::FloorSwap,
        1,
        Packet::Data,
    ),
    case(
        "textbook-1",
        "textbook-1",
        Program::Textbook,
        1,
        Packet::Data,
    ),
    case(
        "textbook-128k",
        "textbook-128k",
        Program::Textbook,
        1 << 17,
        Packet::Data,
    ),
    case(
        "textbook-new",
        "textbook-new",
        Program::Textbook,
        EVERY_PACKET,
        Packet::Syn,
    ),
    case(
        "established-1",
        "textbook-1",
        Program::Product,
        1,
        Packet::Data,
    ),
    case(
        "established-1k",
        "textbook-1",
        Program::Product,
        1 << 10,
        Packet::Data,
    ),
    case(
        "established-128k",
        "textbook-128k",
        Program::Product,
        1 << 17,
        Packet::Data,
    ),
    case(
        "established-1m",
        "textbook-128k",
        Program::ProductLarge,
        1 << 20,
        Packet::Data,
    ),
    case(
        "new-flows",
        "textbook-new",
        Program::Product,
        EVERY_PACKET,
        Packet::Data,
    ),
    case(
        "syn-flood",
        "textbook-new",
        Program::Product,
        EVERY_PACKET,
        Packet::Syn,
    ),
    case(
        "not-a-vip",
        "textbook-1",
        Program::Product,
        1,
        Packet::NotAVip,
    ),
];

#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodTraffic(Traffic);
// SAFETY: integers only, `repr(C)`, no padding.
unsafe impl Pod for PodTraffic {}

/// Everything loaded.
pub struct Harness {
    ebpf: Ebpf,
    traffic: Array<aya::maps::MapData, PodTraffic>,
    product: Xdp,
    large: Xdp,
    /// Keeps the tail-call table, and with it its entries, alive.
    _targets: ProgramArray<aya::maps::MapData>,
    /// Every packet of a new flow must be new in every round.
    next: u32,
}

impl Harness {
    /// Loads the benchmark's programs and the product, twice: with its default table and with one
    /// for a million flows.
    pub fn new(object: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load_file(object)?;
        let mut targets: ProgramArray<_> =
            ebpf.take_map("targets").context("targets")?.try_into()?;
        for (index, name) in [(0, "floor_tx"), (1, "floor_swap"), (2, "textbook")] {
            let program: &mut AyaXdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load()?;
            targets.set(index, program.fd()?, 0)?;
        }
        let wrapper: &mut AyaXdp = ebpf.program_mut("wrapper").context("wrapper")?.try_into()?;
        wrapper.load()?;
        let mut product = product(lb_common::limits::DEFAULT_FLOW_SLOTS)?;
        let mut large = product_of_a_million()?;
        targets.set(Program::Product as u32, product.program()?.fd()?, 0)?;
        targets.set(Program::ProductLarge as u32, large.program()?.fd()?, 0)?;
        prepare_textbook(&mut ebpf)?;
        let traffic = ebpf.take_map("traffic").context("traffic")?.try_into()?;
        Ok(Self {
            ebpf,
            traffic,
            product,
            large,
            _targets: targets,
            next: 0,
        })
    }

    /// Makes the established flows of every case, by two packets each.
    pub fn warm_up(&mut self) -> Result<()> {
        for case in CASES.iter().filter(|case| case.flow_mask != u32::MAX) {
            for packet in [Packet::Syn, case.packet, case.packet] {
                self.run(case, packet, (case.flow_mask + 1).max(1000))?;
            }
        }
        Ok(())
    }

    /// Nanoseconds per packet, the wrapper included.
    pub fn measure(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let duration = self.run(case, case.packet, packets)?;
        self.product.sweep();
        self.large.sweep();
        Ok(duration.as_nanos() as f64)
    }

    fn run(&mut self, case: &Case, packet: Packet, packets: u32) -> Result<Duration> {
        let frame = frame(packet);
        let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        let traffic = Traffic {
            next: self.next,
            flow_mask: case.flow_mask,
            target: case.program as u32,
            client: u32::from_ne_bytes([172, 16, 0, 1]),
            destination: [word(0), word(2), word(4)],
            source: [word(6), word(8), word(10)],
            checksum: word(24),
            reserved: [0; 5],
        };
        if case.flow_mask == u32::MAX {
            self.next = self.next.wrapping_add(packets);
        }
        self.traffic.set(0, PodTraffic(traffic), 0)?;
        let wrapper: &mut AyaXdp = self
            .ebpf
            .program_mut("wrapper")
            .context("wrapper")?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = wrapper.test_run(options)?;
        let expected = if packet == Packet::NotAVip { 2 } else { 3 };
        anyhow::ensure!(
            result.return_value == expected,
            "{}: verdict {}",
            case.name,
            result.return_value
        );
        Ok(result.duration)
    }
}

/// The product with one service of four real servers.
fn product(flow_slots: u32) -> Result<Xdp> {
    let hour = Duration::from_secs(3_600);
    let timeouts = FlowTimeouts {
        tcp: hour,
        tcp_closing: hour,
        tcp_half_open: Duration::from_secs(60),
        udp: hour,
    };
    let config = DataplaneConfig {
        interfaces: Vec::new(),
        allow_generic: false,
        flow_slots,
        timeouts,
    };
    let mut xdp = Xdp::unattached(&config)?;
    let backend = |last| PlannedBackend {
        target: Target::Host(Ipv4Addr::new(10, 0, 0, last)),
        sorry: false,
        weight: 1,
        state: BackendState::Up,
    };
    let service = PlannedService {
        id: ServiceId {
            protocol: Protocol::Tcp,
            address: SocketAddrV4::new(VIP, 80),
        },
        role: 1,
        scheduler: Scheduler::Wrr,
        backends: (1..=4).map(backend).collect(),
    };
    xdp.apply(&Plan {
        services: vec![service],
    })?;
    xdp.set_role(1, true);
    for last in 1..=4 {
        let mac = [2, 0, 0, 0, 0, last];
        // Test runs come in on the loopback device, index 1.
        let place = Neighbour::Host {
            mac,
            ifindex: 1,
            source_mac: [2, 0, 0, 0, 0, 0x43],
        };
        xdp.set_neighbour(Ipv4Addr::new(10, 0, 0, last), Some(place));
    }
    Ok(xdp)
}

fn product_of_a_million() -> Result<Xdp> {
    product(1 << 21)
}

fn prepare_textbook(ebpf: &mut Ebpf) -> Result<()> {
    let key =
        u64::from(u32::from_ne_bytes(VIP.octets())) << 32 | u64::from(80_u16.to_be()) << 16 | 6;
    let mut services: HashMap<_, u64, u32> = ebpf
        .map_mut("text_services")
        .context("text_services")?
        .try_into()?;
    services.insert(key, 1, 0)?;
    let mut backends: Array<_, u64> = ebpf
        .map_mut("text_backends")
        .context("text_backends")?
        .try_into()?;
    for index in 0..4 {
        backends.set(index, 0x0100_0000_0002 + u64::from(index), 0)?;
    }
    Ok(())
}

/// A TCP segment of 64 bytes for the VIP, or for somebody else.
fn frame(packet: Packet) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x43, 2, 0, 0, 0, 9, 9]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[17] = 50;
    frame[22] = 64;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&[172, 16, 0, 1]);
    frame[30..34].copy_from_slice(&VIP.octets());
    if packet == Packet::NotAVip {
        frame[33] = 7;
    }
    frame[36..38].copy_from_slice(&80_u16.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = if packet == Packet::Syn { 0x02 } else { 0x10 };
    let sum = lb_common::checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
