//! Random frames through the XDP program and through the model: same verdict, same real server, same
//! bytes, same reason. Valid ones, valid ones with changes, and garbage.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_user::{
    dataplane::{
        DataPlane,
        plan::{BackendState::Up, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{Hop, Neighbour, Ports, Protocol, Scheduler, ServiceId, Target},
    schedule::ring,
};

use crate::{
    model::{Fate, Model, Service},
    program::{
        CLIENT_MAC, DIRECTOR_MAC, INGRESS, SMALL, apply, in_namespace, load, passed, server_mac,
    },
};

/// Frames of one run; LBD_FUZZ_FRAMES says otherwise.
const FRAMES: u64 = 1_000_000;
/// Program and model begin anew after this many.
const FRESH: u64 = 50_000;
/// Real servers of this number and above are in VLAN 100.
const IN_VLAN: u8 = 5;

/// A small generator (Marsaglia's xorshift64*), so that a seed is all that a failure needs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn vip(v4: bool, number: u8) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 0, 0, 100 + number).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::from(number)).into()
    }
}

fn server_address(v4: bool, last: u8) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 0, 0, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 2, u16::from(last)).into()
    }
}

/// Protocol, ports, mastership, and weights of real servers 1 and up.
fn services() -> Vec<(Protocol, Ports, u16, &'static [u32])> {
    let range = |first, last| Ports { first, last };
    vec![
        (Protocol::Tcp, Ports::one(80), 1, &[1, 3, 0, 0, 2, 1]),
        (Protocol::Udp, Ports::one(53), 1, &[1, 1]),
        (Protocol::Sctp, Ports::one(2905), 1, &[2, 1]),
        (Protocol::Tcp, range(1000, 1003), 1, &[1, 1, 1]),
        (Protocol::Udp, Ports::ALL, 1, &[1, 0, 1]),
        (Protocol::Tcp, Ports::one(81), 2, &[1]),
    ]
}

/// The same services in the program and in the model.
fn both() -> (Xdp, Model) {
    let mut model = Model::default();
    let mut planned = Vec::new();
    for v4 in [true, false] {
        for (protocol, ports, role, weights) in services() {
            let id = ServiceId {
                protocol,
                address: vip(v4, 0),
                ports,
            };
            let backends = (1..)
                .zip(weights)
                .map(|(last, weight)| {
                    PlannedBackend::new(Target::Host(server_address(v4, last)), *weight, Up)
                })
                .collect();
            planned.push(PlannedService::new(id, role, Scheduler::Wrr, backends));
            model.services.push(Service {
                protocol: protocol.number(),
                vip: id.address,
                first: ports.first,
                last: ports.last,
                serving: role == 1,
                ring: ring::build(weights)
                    .iter()
                    .map(|index| *index as u8 + 1)
                    .collect(),
                next: 0,
            });
        }
    }
    let mut xdp = load(SMALL);
    apply(&mut xdp, planned);
    for last in 1..=6 {
        for v4 in [true, false] {
            let mut hop = Hop::on_link(server_mac(last), INGRESS, DIRECTOR_MAC);
            if last >= IN_VLAN {
                hop.vlans[0] = 100;
                model.vlans.insert(last, 100);
            }
            xdp.set_neighbour(server_address(v4, last), Some(Neighbour::Host(hop)));
        }
    }
    (xdp, model)
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn client(random: &mut Random, v4: bool) -> IpAddr {
    let last = random.below(12) as u8;
    if random.one_in(60) {
        return vip(v4, 0);
    }
    if random.one_in(60) {
        return match v4 {
            true => Ipv4Addr::from(random.pick(&[
                [0, 0, 0, 9],
                [127, 1, 2, 3],
                [239, 0, 0, last],
                [255; 4],
            ]))
            .into(),
            false => random
                .pick(&[
                    Ipv6Addr::UNSPECIFIED,
                    Ipv6Addr::LOCALHOST,
                    Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 9),
                ])
                .into(),
        };
    }
    if v4 {
        Ipv4Addr::new(10, 0, 9, last).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(last)).into()
    }
}

fn transport(random: &mut Random, protocol: u8, port: u16, vport: u16) -> Vec<u8> {
    let mut bytes = port.to_be_bytes().to_vec();
    bytes.extend(vport.to_be_bytes());
    match protocol {
        6 => {
            bytes.extend([0; 8]);
            bytes.push(0x50);
            bytes.push(random.pick(&[0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x14, 0x12, 0x00, 0xc2]));
            bytes.extend([0; 6]);
        }
        17 => bytes.extend([0, 8, 0, 0]),
        _ => {
            bytes.extend([0; 8]);
            bytes.push(random.pick(&[1, 0, 3, 7, 6, 14, 10]));
            bytes.extend([0, 0, 4]);
        }
    }
    bytes.extend(std::iter::repeat_n(0x55, random.below(20) as usize));
    bytes
}

fn ipv4(source: IpAddr, destination: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let total = 20 + payload.len() as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 0, 0, 0, ttl, protocol, 0, 0]);
    bytes.extend(bytes_of(source));
    bytes.extend(bytes_of(destination));
    let sum = lb_common::checksum::of(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn ipv6(source: IpAddr, destination: IpAddr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, hops]);
    bytes.extend(bytes_of(source));
    bytes.extend(bytes_of(destination));
    bytes.extend(payload);
    bytes
}

/// An IP packet with what may stand between its header and its payload.
fn datagram(
    random: &mut Random,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let ttl = random.pick(&[64, 64, 64, 64, 255, 2, 1, 0]);
    let piece = if random.one_in(6) {
        random.pick(&[1, 8, 9])
    } else {
        0
    };
    let id = random.below(30) as u8;
    if source.is_ipv4() {
        let mut bytes = ipv4(source, destination, protocol, ttl, payload);
        if random.one_in(8) {
            let words = 1 + random.below(10) as usize;
            bytes.splice(20..20, std::iter::repeat_n(1, words * 4));
            bytes[0] = 0x45 + words as u8;
            let total = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&total.to_be_bytes());
        }
        bytes[5] = id;
        // More fragments, an offset, or both.
        bytes[6] = if piece & 1 != 0 { 0x20 } else { 0 };
        bytes[7] = u8::from(piece & 8 != 0);
        return bytes;
    }
    let mut next = protocol;
    let mut body = payload.to_vec();
    if piece != 0 || random.one_in(40) {
        body.splice(0..0, [next, 0, 0, piece, 0, 0, 0, id]);
        next = 44;
    }
    let extensions = if random.one_in(4) { random.below(8) } else { 0 };
    for _ in 0..extensions {
        let kind = random.pick(&[0, 43, 60, 51, 135]);
        let units = random.below(3) as usize;
        let (length, field) = match kind {
            51 => ((units + 3) * 4, units + 1),
            _ => ((units + 1) * 8, units),
        };
        let mut header = vec![0; length];
        header[0] = next;
        header[1] = field as u8;
        body.splice(0..0, header);
        next = kind;
    }
    ipv6(source, destination, next, ttl, &body)
}

/// A frame that could come, or nearly.
fn frame(random: &mut Random) -> Vec<u8> {
    if random.one_in(50) {
        let length = 14 + random.below(120) as usize;
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let v4 = random.one_in(2);
    let from = client(random, v4);
    let to = vip(v4, u8::from(random.one_in(12)));
    let protocol = random.pick(&[6, 6, 6, 17, 17, 132]);
    let port = random.below(40) as u16;
    let vport = match (protocol, random.below(8)) {
        (_, 0) => random.pick(&[80, 53, 2905, 999, 81, 0, 7000]),
        (6, _) => random.pick(&[80, 80, 1000, 1003]),
        (17, _) => random.pick(&[53, 53, 7000, 65535]),
        _ => 2905,
    };
    let packet = if random.one_in(8) {
        // An ICMP error about what a real server sent, or something like it.
        let answer = transport(random, protocol, vport, port);
        let inner = datagram(random, to, from, protocol, &answer);
        let kind = random.pick(if v4 {
            &[3, 11, 12, 8][..]
        } else {
            &[1, 2, 3, 4, 128]
        });
        let mut icmp = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        icmp.extend(inner);
        let router = client(random, v4);
        let number = if v4 { 1 } else { 58 };
        datagram(random, router, to, number, &icmp)
    } else {
        let payload = transport(random, protocol, port, vport);
        let number = if random.one_in(40) { 47 } else { protocol };
        datagram(random, from, to, number, &payload)
    };
    let mac = match random.below(30) {
        0 => [0xff; 6],
        1 => [2, 0, 0, 0, 0, 0x99],
        _ => DIRECTOR_MAC,
    };
    let mut bytes = mac.to_vec();
    bytes.extend(CLIENT_MAC);
    for _ in 0..random.pick(&[0, 0, 0, 0, 1, 1, 2, 3]) {
        bytes.extend(random.pick(&[[0x81, 0x00], [0x88, 0xa8]]));
        bytes.extend(random.pick(&[[0, 100], [0, 0], [0x60, 100], [0xe0, 0], [0, 7]]));
    }
    bytes.extend(if v4 { [8, 0] } else { [0x86, 0xdd] });
    bytes.extend(packet);
    if random.one_in(3) {
        bytes.resize(bytes.len().max(60), 0);
    }
    for _ in 0..random.pick(&[0, 0, 0, 0, 0, 1, 2]) {
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    if random.one_in(20) {
        bytes.truncate(14.max(random.below(bytes.len() as u64) as usize));
    }
    bytes
}

#[test]
fn program_and_model_agree_about_a_million_frames() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("LBD_FUZZ_SEED").unwrap_or(time.unwrap().as_nanos() as u64 | 1);
    let frames = number("LBD_FUZZ_FRAMES").unwrap_or(FRAMES);
    println!("seed {seed}, {frames} frames");
    in_namespace(|_| {
        let (mut xdp, mut model) = both();
        let mut random = Random(seed);
        let (mut sent, mut forgotten) = (0_u64, 0_u64);
        for count in 0..frames {
            // Before half-open tables are so full that flows are forgotten unnoticed.
            if count > 0 && count.is_multiple_of(FRESH) {
                (xdp, model) = both();
            }
            let frame = frame(&mut random);
            let mut expected = model.decide(&frame);
            let (verdict, out) = xdp.run(&frame, 0).unwrap();
            if let Fate::Send(_, bytes) = &expected
                && *bytes != out
                && let Some(other) = model.decide_as_forgotten(&frame)
            {
                forgotten += 1;
                expected = other;
            }
            let place =
                || format!("seed {seed}, frame {count}: {frame:02x?}\nmodel: {expected:02x?}");
            assert_eq!(verdict, expected.verdict(), "{}", place());
            match &expected {
                Fate::Pass(_) => assert_eq!(out, frame, "{}", place()),
                Fate::Send(_, bytes) => assert_eq!(&out, bytes, "{}", place()),
                Fate::SendToAny(servers) => {
                    let fits = |last: &u8| model.for_server(&frame, *last).as_ref() == Some(&out);
                    assert!(servers.iter().any(fits), "{}: {out:02x?}", place());
                }
            }
            sent += u64::from(verdict == crate::program::TX);
            // Looking at the counters costs more than the packet.
            if count.is_multiple_of(997)
                && let Fate::Pass(reason) = expected
            {
                let before = passed(&mut xdp, reason);
                xdp.run(&frame, 0).unwrap();
                model.decide(&frame);
                assert_eq!(passed(&mut xdp, reason), before + 1, "{}", place());
            }
        }
        println!("{sent} forwarded, {forgotten} half-open flows forgotten");
        assert!(sent * 4 > frames, "only {sent} of {frames} were forwarded");
        assert!(
            forgotten * 200 < frames,
            "{forgotten} half-open flows forgotten"
        );
        assert_eq!(passed(&mut xdp, "not_ready"), 0);
    });
}

/// Where the address of a service stands is no matter.
#[test]
fn services_are_found_among_many() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        let address =
            |number: u16| SocketAddr::new(vip(number.is_multiple_of(2), 0), 1000 + number);
        let services = (1..=3000)
            .map(|number| {
                let id = ServiceId::new(Protocol::Tcp, address(number));
                let last = (number % 200) as u8 + 1;
                let server = server_address(number.is_multiple_of(2), last);
                let backend = PlannedBackend::new(Target::Host(server), 1, Up);
                PlannedService::new(id, 1, Scheduler::Rr, vec![backend])
            })
            .collect();
        apply(&mut xdp, services);
        for last in 1..=200 {
            for v4 in [true, false] {
                let hop = Hop::on_link(server_mac(last), INGRESS, DIRECTOR_MAC);
                xdp.set_neighbour(server_address(v4, last), Some(Neighbour::Host(hop)));
            }
        }
        for number in 1..=3000_u16 {
            let v4 = number.is_multiple_of(2);
            let mut tcp = vec![4, 0];
            tcp.extend((1000 + number).to_be_bytes());
            tcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
            let mut frame = [DIRECTOR_MAC, CLIENT_MAC].concat();
            if v4 {
                frame.extend([8, 0]);
                frame.extend(ipv4(
                    Ipv4Addr::new(10, 0, 9, 9).into(),
                    vip(v4, 0),
                    6,
                    64,
                    &tcp,
                ));
            } else {
                frame.extend([0x86, 0xdd]);
                frame.extend(ipv6(server_address(v4, 250), vip(v4, 0), 6, 64, &tcp));
            }
            let (verdict, out) = xdp.run(&frame, 0).unwrap();
            assert_eq!(verdict, crate::program::TX, "{number}");
            assert_eq!(out[5], (number % 200) as u8 + 1, "{number}");
        }
    });
}
