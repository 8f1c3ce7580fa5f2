//! What XDP leaves to the kernel: IPVS takes it to the real server that XDP chose, and to no other.
//!
//! Both data planes run on a director of their own, with a wire to it. A frame's fate is certain when a second one, sent
//! behind it on the same way, has come back.

mod same_server;
mod upkeep;

use std::{
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
            BackendState::{self, Up},
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
        packets::{returned, rows::CLIENT6},
        prepare, server, wire,
    },
    program::{CLIENT, CLIENT_MAC, DIRECTOR_MAC, SMALL, VIP, frame, server_mac, timeouts},
    with_modules,
};

/// Frames that left behind the fence before this are seen.
const DRAIN: Duration = Duration::from_millis(50);
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
        let mut planes = Planes::new(pair, String::new(), None);
        planes.set_own_addresses(&[(ifindex, DIRECTOR_MAC)], &[]);
        Self {
            planes,
            wire,
            ifindex,
        }
    }

    /// The second real server of the web's services is in this state, all others are up.
    fn apply(&mut self, second: BackendState) {
        self.planes.apply(&Plan::of(services(second))).unwrap();
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

/// The second real server of the web's services is in this state, all others are up.
fn services(second: BackendState) -> Vec<PlannedService> {
    let service = |protocol: Protocol, vip: IpAddr, port, servers: &[u8]| {
        let backends = servers.iter().map(|last| {
            let state = if *last == 2 { second } else { Up };
            PlannedBackend::new(Target::Host(server(vip, *last)), 1, state)
        });
        let id = ServiceId::new(protocol, SocketAddr::new(vip, port));
        PlannedService::new(id, 0, Scheduler::Wrr, backends.collect())
    };
    vec![
        service(Tcp, VIP.into(), WEB, &[1, 2, 3]),
        service(Udp, VIP.into(), DNS, &[4, 5, 6]),
        service(Tcp, VIP6.into(), WEB, &[1, 2, 3]),
        service(Udp, FENCE.into(), FENCE_PORT, &[FENCE_SERVER]),
    ]
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
