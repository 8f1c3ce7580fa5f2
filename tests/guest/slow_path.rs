//! What XDP leaves to the kernel: IPVS takes it to the real server that XDP chose, and to no other.
//!
//! Both data planes run on a director of their own, with a wire to it. A frame's fate is certain when a second one, sent
//! behind it on the same way, has come back.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use lab::{
    Lab, Node,
    network::{INTERFACE, run},
};
use lb_common::slow::{MARK, MARK_MASK};
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        ipvs::Ipvs,
        plan::{
            BackendState::{self, Down, Up},
            PlannedBackend, PlannedService,
        },
        switching::{Kind, Pair, Planes, SlowPath},
        xdp::{Hook, Xdp},
    },
    model::{
        DataplaneConfig, Hop, Mode, Neighbour, Protection,
        Protocol::{self, Tcp, Udp},
        Runtime, Scheduler, ServiceId, Target,
    },
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use socket2::Socket;

use crate::{
    planes::{
        FENCE, FENCE_PORT, FENCE_SERVER, SERVERS, VIP6,
        packets::{
            framed, returned,
            rows::{self, CLIENT6},
        },
        prepare, server, wire,
    },
    program::{
        CLIENT, CLIENT_MAC, DIRECTOR_MAC, SMALL, VIP, frame, server_mac, tcp, timeouts, transport,
        udp,
    },
    with_modules,
};

/// Frames that left behind the fence before this are seen.
const DRAIN: Duration = Duration::from_millis(50);
/// Time for two renewals of services that have connections.
const RENEWALS: u32 = 6;
const WEB: u16 = 80;
const DNS: u16 = 53;

struct Site {
    planes: Planes,
    wire: Socket,
    ifindex: u32,
}

impl Site {
    fn new(lab: &Lab, wire: Socket) -> Self {
        let config = DataplaneConfig {
            interfaces: vec![INTERFACE.to_owned()],
            mode: Mode::Auto,
            allow_generic: false,
            flow_slots: SMALL,
            max_flow_slots: SMALL,
            timeouts: timeouts(),
            protection: Protection::default(),
        };
        let runtime = Runtime {
            socket: lab.directory().join("slow.sock"),
            pin_path: lab.pin_path("slow"),
            script_user: "nobody".to_owned(),
            notify_fifo: None,
        };
        let xdp = Xdp::start(&config, &runtime, Hook::Native, false).unwrap();
        let ipvs = Ipvs::start(&timeouts(), &runtime).unwrap();
        let pair = Pair::Both {
            xdp: Box::new(xdp),
            ipvs: Box::new(ipvs),
            forwarding: Kind::Xdp,
        };
        let ifindex = nix::net::if_::if_nametoindex(INTERFACE).unwrap();
        let mut planes = Planes::new(pair, String::new(), String::new());
        planes.set_own_addresses(&[(ifindex, DIRECTOR_MAC)], &[]);
        Self {
            planes,
            wire,
            ifindex,
        }
    }

    /// The second real server of the web's services is in this state, all others are up.
    fn apply(&mut self, second: BackendState) {
        let service = |protocol: Protocol, vip: IpAddr, port, servers: &[u8]| {
            let backends = servers.iter().map(|last| {
                let state = if *last == 2 { second } else { Up };
                PlannedBackend::new(Target::Host(server(vip, *last)), 1, state)
            });
            let id = ServiceId::new(protocol, SocketAddr::new(vip, port));
            PlannedService::new(id, 0, Scheduler::Wrr, backends.collect())
        };
        let services = vec![
            service(Tcp, VIP.into(), WEB, &[1, 2, 3]),
            service(Udp, VIP.into(), DNS, &[4, 5, 6]),
            service(Tcp, VIP6.into(), WEB, &[1, 2, 3]),
            service(Udp, FENCE.into(), FENCE_PORT, &[FENCE_SERVER]),
        ];
        self.planes.apply(&Plan::of(services)).unwrap();
    }

    /// Whether XDP knows the way to a real server. The kernel always does.
    fn resolve(&mut self, last: u8, known: bool) {
        let hop = Hop::on_link(server_mac(last), self.ifindex, DIRECTOR_MAC);
        for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
            let place = known.then_some(Neighbour::Host(hop));
            self.planes.set_neighbour(server(vip, last), place);
        }
    }

    /// What the director sent after these frames came in, to real servers and to the client.
    fn send_all(&self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let fence = etherparse::UdpHeader {
            source_port: FENCE_PORT,
            destination_port: FENCE_PORT,
            ..etherparse::UdpHeader::default()
        };
        let fence = frame(
            CLIENT,
            FENCE,
            64,
            etherparse::TransportHeader::Udp(fence),
            b"fence",
        );
        for sent in frames.iter().chain([&fence]) {
            self.wire.send(sent).unwrap();
        }
        let mut sent = Vec::new();
        self.wire
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        loop {
            let mut bytes = [0; 2048];
            let length = match (&self.wire).read(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
                Err(error) => panic!("{error}"),
            };
            let seen = bytes[..length].to_vec();
            if seen[..6] == server_mac(FENCE_SERVER) {
                // What XDP sends itself may come a moment later.
                self.wire.set_read_timeout(Some(DRAIN)).unwrap();
            } else if seen[6..12] == DIRECTOR_MAC {
                let to_server = (1..=SERVERS).any(|last| seen[..6] == server_mac(last));
                if to_server || seen[..6] == CLIENT_MAC {
                    sent.push(seen);
                }
            }
        }
    }

    /// The real server that a frame went to, and nobody else got anything.
    fn server_of(&self, sent: &[u8]) -> u8 {
        let seen = self.send_all(&[sent.to_vec()]);
        let [one] = seen.as_slice() else {
            panic!("{seen:02x?} for {sent:02x?}, {}", table());
        };
        let last = one[5];
        assert_eq!(*one, returned(sent, last), "{}", table());
        last
    }

    fn slow_path(&mut self) -> SlowPath {
        self.planes.snapshot().slow_path.unwrap()
    }

    /// Looks after things as the daemon does, for some seconds.
    fn tend(&mut self, seconds: u32) {
        for _ in 0..seconds {
            thread::sleep(Duration::from_secs(1));
            self.planes.sweep();
        }
    }
}

fn table() -> String {
    run(Command::new("ipvsadm").arg("-Ln")).unwrap()
}

/// Services of the slow path, each with its only real server.
fn ways() -> Vec<String> {
    let text = table();
    let mut lines = text.lines().skip(3);
    let mut ways = Vec::new();
    while let Some(line) = lines.next() {
        let mark: u32 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(
            line.starts_with("FWM ") && mark & MARK_MASK == MARK,
            "{text}"
        );
        let way = lines.next().unwrap();
        ways.push(way.split_whitespace().nth(1).unwrap().to_owned());
    }
    ways.sort();
    ways
}

fn settings() -> Vec<String> {
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/vs/{name}");
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    ["sloppy_tcp", "sloppy_sctp", "expire_nodest_conn"]
        .map(read)
        .to_vec()
}

fn with_site(work: impl FnOnce(&mut Site) + Send) {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let director = lab.node("director", [10, 0, 0, 43]).unwrap();
    let source = lab.node("source", [10, 0, 9, 8]).unwrap();
    prepare(&director);
    know_client(&director);
    let wire = source.within(wire).unwrap();
    director
        .within(|| {
            // On one processor frames do not overtake one another.
            let mut first = CpuSet::new();
            first.set(0).unwrap();
            sched_setaffinity(Pid::from_raw(0), &first).unwrap();
            let before = (table(), settings());
            let mut site = Site::new(&lab, wire);
            work(&mut site);
            site.planes.detach().unwrap();
            drop(site);
            assert_eq!((table(), settings()), before, "as it was before");
            let filters =
                run(Command::new("tc").args(["filter", "show", "dev", INTERFACE, "ingress"]));
            assert!(!filters.unwrap().contains("slow_in"));
        })
        .unwrap();
}

/// The kernel's way to the client, for what the director answers itself.
fn know_client(director: &Node) {
    let mac = CLIENT_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let address = std::net::Ipv6Addr::from(CLIENT6).to_string();
    let words = [
        "neigh",
        "replace",
        &address,
        "lladdr",
        &mac,
        "dev",
        INTERFACE,
        "nud",
        "permanent",
    ];
    director.ip(&words).unwrap();
}

fn tcp6(port: u16, flags: u8) -> Vec<u8> {
    framed(&rows::v6(
        CLIENT6,
        VIP6.octets(),
        6,
        &rows::tcp(port, WEB, flags),
    ))
}

/// 24 bytes of a datagram in pieces of eight, the first with the UDP header.
fn piece(port: u16, id: u16, index: usize) -> Vec<u8> {
    let payload = [&udp(port, DNS)[34..42], &[7; 16][..]].concat();
    let mut packet = udp(port, DNS)[14..34].to_vec();
    packet.extend(&payload[index * 8..index * 8 + 8]);
    packet[2..4].copy_from_slice(&28_u16.to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let more = if index < 2 { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&(more | index as u16).to_be_bytes());
    framed(&rows::sealed(packet))
}

/// The type of the only answer, an ICMP error from the VIP to the client.
fn error_type(seen: &[Vec<u8>]) -> u8 {
    let [answer] = seen else {
        panic!("{seen:02x?}")
    };
    assert_eq!(answer[..6], CLIENT_MAC);
    match answer[14] >> 4 {
        4 => {
            assert_eq!((answer[23], &answer[26..30]), (1, &VIP.octets()[..]));
            answer[34]
        }
        _ => {
            assert_eq!((answer[20], &answer[22..38]), (58, &VIP6.octets()[..]));
            answer[54]
        }
    }
}

#[test]
fn ipvs_takes_what_xdp_leaves_to_the_same_real_server() {
    with_site(|site| {
        for last in 1..=SERVERS {
            site.resolve(last, true);
        }
        site.apply(Up);
        assert!(site.planes.has_slow_path(), "{:?}", site.slow_path());
        assert_eq!(site.slow_path().servers, 10);
        assert_eq!(ways().len(), 10, "{}", table());
        assert_eq!(settings(), ["1", "1", "1"]);
        // Applying twice sends nothing.
        let before = table();
        site.apply(Up);
        site.tend(3);
        assert_eq!(table(), before);

        let flows = flows(site);
        expired(site, &flows);
        without_neighbours(site, &flows);
        reversed_fragments(site);
        a_port_begins_anew(site);
        flushed(site, &flows);
        one_goes_down(site, &flows);
    });
}

/// Flows of three kinds, and where XDP sends each.
struct Flows {
    web: BTreeMap<u16, u8>,
    web6: BTreeMap<u16, u8>,
    dns: BTreeMap<u16, u8>,
}

fn flows(site: &Site) -> Flows {
    let made = |packet: &dyn Fn(u16) -> Vec<u8>| {
        let flow = |port| (port, site.server_of(&packet(port)));
        (1000..1030).map(flow).collect()
    };
    let flows = Flows {
        web: made(&|port| tcp(port, WEB, "S")),
        web6: made(&|port| tcp6(port, 2)),
        dns: made(&|port| udp(port, DNS)),
    };
    for servers in [&flows.web, &flows.web6, &flows.dns] {
        let first = servers[&1000];
        assert_eq!(servers.values().filter(|last| **last == first).count(), 10);
    }
    flows
}

/// TTL 1: the director says so, and no real server sees it.
fn expired(site: &mut Site, flows: &Flows) {
    let seen_before = site.slow_path().packets;
    let known = frame(CLIENT, VIP, 1, transport(1000, WEB, "A"), b"payload");
    assert_eq!(error_type(&site.send_all(&[known])), 11);
    let unknown = frame(CLIENT, VIP, 1, transport(999, WEB, "S"), b"");
    assert_eq!(error_type(&site.send_all(&[unknown])), 11);
    let mut datagram = udp(1000, DNS)[14..].to_vec();
    datagram[8] = 1;
    assert_eq!(
        error_type(&site.send_all(&[framed(&rows::sealed(datagram))])),
        11
    );
    let mut six = tcp6(1000, 0x10);
    six[21] = 1;
    assert_eq!(error_type(&site.send_all(&[six])), 3);
    assert!(site.slow_path().packets >= seen_before + 4);
    // The flows are where they were.
    for (port, last) in &flows.web {
        assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last);
    }
}

/// XDP does not know where most real servers are; the kernel does.
fn without_neighbours(site: &mut Site, flows: &Flows) {
    for last in [2, 3, 5, 6] {
        site.resolve(last, false);
    }
    let before = site.slow_path().packets;
    for _ in 0..2 {
        for (port, last) in &flows.web {
            assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last, "{port}");
        }
        for (port, last) in &flows.web6 {
            assert_eq!(site.server_of(&tcp6(*port, 0x10)), *last, "{port}");
        }
        for (port, last) in &flows.dns {
            assert_eq!(site.server_of(&udp(*port, DNS)), *last, "{port}");
        }
    }
    // Two in three of 180, besides a fence for each.
    assert!(
        site.slow_path().packets >= before + 120,
        "{:?}",
        site.slow_path()
    );
    let connections = run(Command::new("ipvsadm").args(["-Lnc"])).unwrap();
    assert!(
        connections.contains("TCP ") && !connections.contains("UDP "),
        "{connections}"
    );
}

/// The kernel puts the pieces together, and sends all of them where the flow is.
fn reversed_fragments(site: &mut Site) {
    for last in [5, 6] {
        site.resolve(last, true);
    }
    for port in 2000..2006 {
        let last = site.server_of(&udp(port, DNS));
        let pieces = [0, 1, 2].map(|index| piece(port, port, index));
        let seen = site.send_all(&[&pieces[2], &pieces[1], &pieces[0]].map(Vec::clone));
        let expected: Vec<Vec<u8>> = pieces.iter().map(|piece| returned(piece, last)).collect();
        assert_eq!(seen, expected, "{port}");
    }
}

/// A client's port begins another connection, which XDP gives to another real server: the kernel forgets the one before.
fn a_port_begins_anew(site: &mut Site) {
    for last in 1..=3 {
        site.resolve(last, false);
    }
    let ports: Vec<u16> = (3000..3012).collect();
    let connect = |site: &Site| -> Vec<u8> {
        let begin = |port: &u16| {
            let first = site.server_of(&tcp(*port, WEB, "S"));
            assert_eq!(site.server_of(&tcp(*port, WEB, "A")), first);
            first
        };
        ports.iter().map(begin).collect()
    };
    let before = connect(site);
    for port in &ports {
        site.server_of(&tcp(*port, WEB, "FA"));
    }
    // Moves the turn on, so that nobody gets the one it had.
    site.resolve(1, true);
    site.server_of(&tcp(3100, WEB, "S"));
    site.resolve(1, false);
    site.tend(RENEWALS);
    let after = connect(site);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(moved >= ports.len() / 2, "{before:?} {after:?}");
    for last in 1..=3 {
        site.resolve(last, true);
    }
}

fn flushed(site: &mut Site, flows: &Flows) {
    site.resolve(2, false);
    let before = ways();
    run(Command::new("ipvsadm").arg("-C")).unwrap();
    site.tend(1);
    assert_eq!(ways(), before);
    let snapshot = site.planes.snapshot();
    assert!(snapshot.repairs.count > 0, "{:?}", snapshot.repairs);
    for (port, last) in &flows.web {
        assert_eq!(site.server_of(&tcp(*port, WEB, "A")), *last);
    }
}

fn one_goes_down(site: &mut Site, flows: &Flows) {
    site.apply(Down);
    assert_eq!(site.slow_path().servers, 8);
    assert!(
        !ways().iter().any(|way| way.contains("10.0.0.2:")),
        "{}",
        table()
    );
    for port in flows.web.keys() {
        assert_ne!(site.server_of(&tcp(*port, WEB, "A")), 2);
    }
    site.apply(Up);
    assert_eq!(ways().len(), 10);
    // What the kernel knew of that real server is not believed any more.
    site.resolve(1, false);
    site.resolve(3, false);
    for port in flows.web.keys() {
        let last = site.server_of(&tcp(*port, WEB, "A"));
        assert_ne!(last, 2);
    }
}
