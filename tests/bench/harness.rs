//! The programs, their maps and their packets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramFd, TestRun, TestRunOptions, Xdp as AyaXdp},
};
use lb_common::{
    bench::Traffic,
    limits::{BUCKET_WAYS, HALF_OPEN_BUCKETS},
};
use lb_user::{
    dataplane::{
        DataPlane, FlowQuery, Plan,
        plan::{BackendState, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{
        DataplaneConfig, FlowTimeouts, Hop, IpPrefix, Neighbour, Protection, Protocol, Scheduler,
        ServiceId, SourceRule, Target,
    },
};

use crate::{
    cases::{CASES, Case, FLOORS, Packet, Program},
    hammer,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x43];
/// Test runs come in on the loopback device.
const INGRESS: u32 = 1;
const VLAN: u16 = 100;
/// Flows that are made at a time: a quarter of the slots of a half-open table, so that its buckets do not fill.
const SLICE: u32 = HALF_OPEN_BUCKETS * BUCKET_WAYS as u32 / 4;
const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
/// Instructions that the verifier may walk for the product; the kernel's limit is a million.
pub const VERIFIED_BUDGET: u32 = 600_000;

#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct PodTraffic(pub Traffic);
// SAFETY: integers only, `repr(C)`, no padding.
unsafe impl Pod for PodTraffic {}

/// Everything loaded.
pub struct Harness {
    ebpf: Ebpf,
    traffic: Array<aya::maps::MapData, PodTraffic>,
    product: Xdp,
    large: Xdp,
    tagged: Xdp,
    listed: Xdp,
    /// Keeps the tail-call table, and with it its entries, alive.
    _targets: ProgramArray<aya::maps::MapData>,
    /// The next flow that is new: every packet of a new flow must be so in every round. Beyond those of all cases.
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
        for floor in &FLOORS {
            let name = floor.packet.wrapper();
            let wrapper: &mut AyaXdp = ebpf.program_mut(name).context(name)?.try_into()?;
            wrapper.load()?;
        }
        let mut tagged = product(lb_common::limits::DEFAULT_FLOW_SLOTS, VLAN)?;
        let mut product = product(lb_common::limits::DEFAULT_FLOW_SLOTS, 0)?;
        let mut large = product_of_a_million()?;
        targets.set(Program::Product as u32, product.program()?.fd()?, 0)?;
        targets.set(Program::ProductLarge as u32, large.program()?.fd()?, 0)?;
        targets.set(Program::ProductVlan as u32, tagged.program()?.fd()?, 0)?;
        let mut listed = listed()?;
        targets.set(Program::ProductListed as u32, listed.program()?.fd()?, 0)?;
        prepare_textbook(&mut ebpf)?;
        let traffic = ebpf.take_map("traffic").context("traffic")?.try_into()?;
        Ok(Self {
            ebpf,
            traffic,
            product,
            large,
            tagged,
            listed,
            _targets: targets,
            next: 1 << 20,
        })
    }

    /// Makes the established flows of every case, by a first packet and two more of each. A slice of them at a time:
    /// in the half-open table a flow waits for its second packet, and with more of them than there are slots most
    /// would be gone by then.
    pub fn warm_up(&mut self) -> Result<()> {
        for case in CASES.iter().filter(|case| !case.is_of_new_flows()) {
            let opening = match case.packet {
                Packet::Ipv6 | Packet::Tagged => case.packet,
                _ => Packet::Syn,
            };
            for first in (0..case.flows()).step_by(SLICE as usize) {
                for packet in [opening, case.packet, case.packet] {
                    self.run(case, packet, first, SLICE.min(case.flows()))?;
                }
            }
            self.require_established(case)?;
        }
        Ok(())
    }

    /// Fails unless nearly all flows of a case are in the table of promoted flows, or were put beside it because their bucket
    /// is full. Flows of one program's cases are among those of the next larger one.
    fn require_established(&mut self, case: &Case) -> Result<()> {
        let vip = match case.packet {
            Packet::NotAVip => return Ok(()),
            Packet::Ipv6 => VIP6.into(),
            _ => IpAddr::from(VIP),
        };
        let Some(product) = self.product_of(case.program) else {
            return Ok(());
        };
        let query = FlowQuery {
            service: Some(SocketAddr::new(vip, 80).to_string()),
            limit: usize::MAX,
            ..FlowQuery::default()
        };
        let flows = product.flows(&query).map_err(anyhow::Error::msg)?.flows;
        let established = flows.iter().filter(|flow| flow.state == "established");
        let (established, all) = (established.count() as u64, u64::from(case.flows()));
        ensure!(
            established * 100 >= all * 98,
            "{}: {established} of {all} flows are established",
            case.name
        );
        Ok(())
    }

    fn product_of(&mut self, program: Program) -> Option<&mut Xdp> {
        match program {
            Program::FloorTx | Program::FloorSwap | Program::Textbook => None,
            Program::Product => Some(&mut self.product),
            Program::ProductLarge => Some(&mut self.large),
            Program::ProductVlan => Some(&mut self.tagged),
            Program::ProductListed => Some(&mut self.listed),
        }
    }

    /// Two CPUs work on one table at once: see [`hammer::run`].
    pub fn hammer(&mut self, object: &Path, packets: u32) -> Result<Vec<String>> {
        hammer::run(object, &mut self.product, packets)
    }

    /// `packets` first packets of random sources run through the tables, a tenth at a time, and between the
    /// tenths 1,024 connections go on. Returns how many of those were scheduled anew.
    pub fn flood(&mut self, packets: u32) -> Result<u64> {
        let find = |name: &str| CASES.iter().find(|case| case.name == name).context("case");
        let (known, flood) = (find("established-1k")?, find("syn-flood")?);
        let all = 4 * (known.flow_mask + 1);
        for packet in [Packet::Syn, Packet::Data, Packet::Data] {
            self.run(known, packet, 0, all)?;
        }
        self.require_established(known)?;
        let mut anew = 0;
        for _ in 0..10 {
            let first = self.new_flows(packets / 10);
            self.run(flood, Packet::Syn, first, packets / 10)?;
            let before = self.scheduled(Program::Product)?;
            self.run(known, Packet::Data, 0, all)?;
            anew += self.scheduled(Program::Product)? - before;
        }
        Ok(anew)
    }

    /// Nanoseconds per packet of 1,024 established connections, wrapper included: alone, and while
    /// another CPU sends first packets of random sources through the same tables.
    pub fn under_flood(&mut self, object: &Path, packets: u32) -> Result<(f64, f64)> {
        let known = CASES.iter().find(|case| case.name == "established-1k");
        let known = known.context("case")?;
        let program = self.product.program()?.fd()?.try_clone()?;
        let alone = self.run(known, Packet::Data, 0, packets)?.as_nanos() as f64;
        let flooded = std::thread::scope(|scope| -> Result<f64> {
            let flood = scope.spawn(|| flood_alone(object, &program, 40_000_000));
            // The other CPU loads its wrapper first.
            std::thread::sleep(Duration::from_millis(500));
            let mut costs = Vec::new();
            while !flood.is_finished() && costs.len() < 7 {
                costs.push(self.run(known, Packet::Data, 0, packets)?.as_nanos() as f64);
            }
            let ended = flood.join();
            ended.map_err(|panic| anyhow::anyhow!("panicked: {panic:?}"))??;
            costs.sort_by(f64::total_cmp);
            costs.get(costs.len() / 2).copied().context("no figures")
        })?;
        Ok((alone, flooded))
    }

    /// Connections that a program's schedulers have given away.
    fn scheduled(&mut self, program: Program) -> Result<u64> {
        if let Some(product) = self.product_of(program) {
            let services = product.snapshot().services;
            let backends = services.iter().flat_map(|service| &service.backends);
            return Ok(backends.map(|backend| backend.connections).sum());
        }
        let map = self.ebpf.map_mut("text_cursor").context("text_cursor")?;
        Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
    }

    /// What the verifier did for the product, and what a flow costs.
    pub fn describe(&mut self) -> Result<String> {
        let info = self.product.program()?.info()?;
        let verified = info.verified_instruction_count().unwrap_or(0);
        ensure!(
            verified <= VERIFIED_BUDGET,
            "the verifier walked {verified} instructions, more than {VERIFIED_BUDGET}"
        );
        Ok(format!(
            "verified instructions: {verified} (budget {VERIFIED_BUDGET})\n\
             map memory: 16 bytes a slot, 40 with IPv6; a table grows at half full, so 32 to 64 bytes a flow, \
             80 to 160 with IPv6"
        ))
    }

    /// Nanoseconds per packet, the wrapper included. Fails if more than 2 % of the packets of established flows were
    /// taken for new ones.
    pub fn measure(&mut self, case: &Case, packets: u32) -> Result<f64> {
        let first = if case.is_of_new_flows() {
            self.new_flows(packets)
        } else {
            0
        };
        let before = self.scheduled(case.program)?;
        let duration = self.run(case, case.packet, first, packets)?;
        let anew = self.scheduled(case.program)? - before;
        ensure!(
            case.is_of_new_flows() || anew * 50 <= u64::from(packets),
            "{}: {anew} of {packets} packets were scheduled anew",
            case.name
        );
        self.product.sweep();
        self.large.sweep();
        self.tagged.sweep();
        self.listed.sweep();
        Ok(duration.as_nanos() as f64)
    }

    /// The number of the first of so many flows that no packet belonged to yet.
    fn new_flows(&mut self, packets: u32) -> u32 {
        let first = self.next;
        self.next = self.next.wrapping_add(packets);
        first
    }

    /// `first` is the number of the first packet's flow.
    fn run(&mut self, case: &Case, packet: Packet, first: u32, packets: u32) -> Result<Duration> {
        let frame = frame(packet);
        let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        let traffic = Traffic {
            next: first,
            target: case.program as u32,
            checksum: word(if packet == Packet::Tagged { 28 } else { 24 }),
            ..traffic(&frame, case.flow_mask)
        };
        self.traffic.set(0, PodTraffic(traffic), 0)?;
        let name = packet.wrapper();
        let wrapper: &mut AyaXdp = self.ebpf.program_mut(name).context(name)?.try_into()?;
        let expected = if packet == Packet::NotAVip {
            XDP_PASS
        } else {
            XDP_TX
        };
        test_run(wrapper, &frame, packets, expected).context(case.name)
    }
}

/// SYNs of 524,288 clients' ports, by a wrapper of its own.
fn flood_alone(object: &Path, program: &ProgramFd, packets: u32) -> Result<()> {
    let mut ebpf = EbpfLoader::new().load_file(object)?;
    let mut targets: ProgramArray<_> = ebpf.take_map("targets").context("targets")?.try_into()?;
    let mut map: Array<_, PodTraffic> = ebpf.take_map("traffic").context("traffic")?.try_into()?;
    let wrapper: &mut AyaXdp = ebpf.program_mut("wrapper").context("wrapper")?.try_into()?;
    wrapper.load()?;
    targets.set(Program::Product as u32, program, 0)?;
    let frame = frame(Packet::Syn);
    map.set(0, PodTraffic(traffic(&frame, (1 << 19) - 1)), 0)?;
    test_run(wrapper, &frame, packets, XDP_TX)?;
    Ok(())
}

/// Runs a wrapper and says how long a packet took. Fails if the last one had another verdict.
pub fn test_run(wrapper: &AyaXdp, frame: &[u8], packets: u32, expected: u32) -> Result<Duration> {
    let options = TestRunOptions {
        data_in: Some(frame),
        repeat: packets,
        ..TestRunOptions::default()
    };
    let result = wrapper.test_run(options)?;
    ensure!(
        result.return_value == expected,
        "verdict {}",
        result.return_value
    );
    Ok(result.duration)
}

/// The product gets such frames without a tag from this many clients and ports, all ones being no end of them.
pub fn traffic(frame: &[u8], flow_mask: u32) -> Traffic {
    let word = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
    Traffic {
        next: 0,
        flow_mask,
        target: Program::Product as u32,
        client: u32::from_ne_bytes([172, 16, 0, 1]),
        // 160.0.0.0/4, where no address is a group's or nobody's: such packets pass.
        client_mask: u32::from_ne_bytes([15, 255, 255, 255]),
        destination: [word(0), word(2), word(4)],
        source: [word(6), word(8), word(10)],
        checksum: word(24),
        port_bits: 14,
        reserved: [0; 2],
    }
}

/// The product with one service of each version of IP, of four real servers.
fn product(flow_slots: u32, vlan: u16) -> Result<Xdp> {
    let hour = Duration::from_secs(3_600);
    let timeouts = FlowTimeouts {
        tcp: hour,
        tcp_closing: hour,
        tcp_half_open: Duration::from_secs(60),
        udp: hour,
    };
    let config = DataplaneConfig {
        interfaces: Vec::new(),
        mode: lb_user::model::Mode::Xdp,
        allow_generic: false,
        flow_slots,
        max_flow_slots: flow_slots,
        timeouts,
        protection: Protection::default(),
    };
    let mut xdp = Xdp::unattached(&config)?;
    xdp.set_own_addresses(&[(INGRESS, DIRECTOR_MAC)], &[(INGRESS, [VLAN, 0])]);
    let vips: [IpAddr; 2] = [VIP.into(), VIP6.into()];
    let services = vips.map(|vip| {
        let backends = (1..=4)
            .map(|last| PlannedBackend::new(Target::Host(server(vip, last)), 1, BackendState::Up))
            .collect();
        let id = ServiceId::new(Protocol::Tcp, SocketAddr::new(vip, 80));
        PlannedService::new(id, 1, Scheduler::Wrr, backends)
    });
    xdp.apply(&Plan::of(services.to_vec()))?;
    xdp.set_role(1, true);
    for last in 1..=4 {
        for vip in vips {
            let mut hop = Hop::on_link([2, 0, 0, 0, 0, last], INGRESS, DIRECTOR_MAC);
            hop.vlans[0] = vlan;
            xdp.set_neighbour(server(vip, last), Some(Neighbour::Host(hop)));
        }
    }
    Ok(xdp)
}

fn server(vip: IpAddr, last: u8) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::new(10, 0, 0, last).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

fn product_of_a_million() -> Result<Xdp> {
    product(1 << 21, 0)
}

/// With a million random /24 of IPv4 and /64 of IPv6, none of which holds the client.
fn listed() -> Result<Xdp> {
    let mut xdp = product(lb_common::limits::DEFAULT_FLOW_SLOTS, 0)?;
    let mut state = 0_u64;
    let mut random = || {
        // Steele and others, "Fast splittable pseudorandom number generators" (splitmix64).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u32
    };
    let mut prefixes = std::collections::BTreeSet::new();
    while prefixes.len() < 1_000_000 {
        let v4 = random() & 0xffff_ff00;
        // The clients' own networks.
        if v4 >> 20 != 0xac1 {
            prefixes.insert(IpPrefix {
                address: Ipv4Addr::from(v4).into(),
                length: 24,
            });
        }
    }
    while prefixes.len() < 2_000_000 {
        let v6 = 0x2001_0db8 << 96 | u128::from(random()) << 64;
        if (v6 >> 64) as u32 != 0x0009_0009 {
            prefixes.insert(IpPrefix {
                address: Ipv6Addr::from(v6).into(),
                length: 64,
            });
        }
    }
    let sources = prefixes
        .into_iter()
        .map(|prefix| (prefix, SourceRule::Block));
    xdp.set_protection(&Protection {
        sources: sources.collect(),
        ..Protection::default()
    })?;
    Ok(xdp)
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

/// A TCP segment in a frame of 64 bytes or a little more, for the VIP or for somebody else.
pub fn frame(packet: Packet) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0x43, 2, 0, 0, 0, 9, 9];
    if packet == Packet::Tagged {
        frame.extend([0x81, 0, 0, VLAN as u8]);
    }
    if packet == Packet::Ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 0, 0, 0, 1).octets());
        frame.extend(VIP6.octets());
    } else {
        let mut header = [
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 172, 16, 0, 1, 0, 0, 0, 0,
        ];
        header[16..].copy_from_slice(&VIP.octets());
        if packet == Packet::NotAVip {
            header[19] = 7;
        }
        let sum = lb_common::checksum::of(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    }
    frame.extend([0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50]);
    frame.push(if packet == Packet::Syn { 0x02 } else { 0x10 });
    frame.extend([0; 6]);
    frame.resize(frame.len().max(64), 0);
    frame
}
