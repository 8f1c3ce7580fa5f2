//! Both data planes behind one face: a frame comes in, and goes to a real server or stays. What is asked
//! of them is in `packets` and `choices`.
//!
//! XDP is asked in the kernel, without an interface. IPVS runs on a director of its own, with a wire to
//! it: a frame's fate is certain when a second one, sent behind it to a service of its own, has come back.

mod choices;
pub mod packets;

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use lab::{Lab, Node, network::INTERFACE};
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        ipvs::Ipvs,
        plan::{BackendState::Up, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{Hop, Neighbour, Protocol::Udp, Runtime, Scheduler, ServiceId, Target},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    program::{
        CLIENT, CLIENT_MAC, DIRECTOR_MAC, INGRESS, PASS, SMALL, TX, VIP, frame, in_namespace, load,
        server_mac, timeouts,
    },
    with_modules,
};

pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 100);
/// Real servers are 10.0.0.1 and so on, and 2001:db8::1 and so on, up to this one.
pub const SERVERS: u8 = 9;
/// Where the second frames go: a service of the kernel's, and its real server.
pub const FENCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 102);
pub const FENCE_PORT: u16 = 7;
pub const FENCE_SERVER: u8 = 250;
/// ETH_P_ALL.
const EVERY_PROTOCOL: u16 = 3;

/// A data plane that serves `VIP` and `VIP6`.
pub trait Plane {
    /// "XDP" or "IPVS".
    fn name(&self) -> &'static str;

    /// Makes it hold these services and no others.
    fn apply(&mut self, services: Vec<PlannedService>);

    /// What left to real servers for the frame: itself, nothing if the director kept it, or more.
    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>>;
}

/// Address of a real server, of the version of IP of `vip`.
pub fn server(vip: IpAddr, last: u8) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::new(10, 0, 0, last).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

struct Program(Xdp);

impl Plane for Program {
    fn name(&self) -> &'static str {
        "XDP"
    }

    fn apply(&mut self, services: Vec<PlannedService>) {
        self.0.apply(&Plan::of(services)).unwrap();
    }

    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let (verdict, out) = self.0.run(frame, 0).unwrap();
        match verdict {
            TX => vec![out],
            PASS => {
                assert_eq!(out, frame, "changed although it passes");
                Vec::new()
            }
            other => panic!("verdict {other}"),
        }
    }
}

struct Kernel {
    ipvs: Ipvs,
    wire: Socket,
    fence: Vec<u8>,
}

impl Plane for Kernel {
    fn name(&self) -> &'static str {
        "IPVS"
    }

    fn apply(&mut self, mut services: Vec<PlannedService>) {
        let id = ServiceId::new(Udp, SocketAddr::from((FENCE, FENCE_PORT)));
        let target = Target::Host(server(FENCE.into(), FENCE_SERVER));
        let backends = vec![PlannedBackend::new(target, 1, Up)];
        services.push(PlannedService::new(id, 0, Scheduler::Rr, backends));
        self.ipvs.apply(&Plan::of(services)).unwrap();
    }

    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.wire.send(frame).unwrap();
        self.wire.send(&self.fence).unwrap();
        let mut sent = Vec::new();
        loop {
            let mut bytes = [0; 2048];
            let length = (&self.wire).read(&mut bytes).unwrap();
            let seen = bytes[..length].to_vec();
            if seen[..6] == server_mac(FENCE_SERVER) {
                break;
            }
            let to_server = (1..=SERVERS).any(|last| seen[..6] == server_mac(last));
            if to_server && seen[6..12] == DIRECTOR_MAC {
                sent.push(seen);
            }
        }
        sent
    }
}

/// Runs `work` on both data planes, XDP first, and returns what both said.
pub fn on_both<T: Send>(work: impl Fn(&mut dyn Plane) -> T + Send + Sync) -> [T; 2] {
    let ours = in_namespace(|_| {
        let mut xdp = load(SMALL);
        for last in 1..=SERVERS {
            for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
                let hop = Hop::on_link(server_mac(last), INGRESS, DIRECTOR_MAC);
                xdp.set_neighbour(server(vip, last), Some(Neighbour::Host(hop)));
            }
        }
        work(&mut Program(xdp))
    });
    [ours, in_the_kernel(work)]
}

fn in_the_kernel<T: Send>(work: impl Fn(&mut dyn Plane) -> T + Send + Sync) -> T {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let director = lab.node("director", [10, 0, 0, 43]).unwrap();
    let source = lab.node("source", [10, 0, 9, 8]).unwrap();
    prepare(&director);
    let wire = source.within(wire).unwrap();
    let runtime = Runtime {
        socket: lab.directory().join("planes.sock"),
        pin_path: lab.pin_path("planes"),
        script_user: "nobody".to_owned(),
        notify_fifo: None,
    };
    director
        .within(|| {
            // On one processor frames do not overtake one another.
            let mut first = CpuSet::new();
            first.set(0).unwrap();
            sched_setaffinity(Pid::from_raw(0), &first).unwrap();
            let header = etherparse::UdpHeader {
                source_port: FENCE_PORT,
                destination_port: FENCE_PORT,
                ..etherparse::UdpHeader::default()
            };
            let header = etherparse::TransportHeader::Udp(header);
            let mut kernel = Kernel {
                ipvs: Ipvs::start(&timeouts(), &runtime).unwrap(),
                wire,
                fence: frame(CLIENT, FENCE, 64, header, b"fence"),
            };
            let said = work(&mut kernel);
            kernel.ipvs.detach().unwrap();
            said
        })
        .unwrap()
}

/// Addresses, neighbours and settings of the director.
pub fn prepare(director: &Node) {
    let ip = |words: &str| director.ip(&words.split(' ').collect::<Vec<_>>()).unwrap();
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!(
        "link set {INTERFACE} address {}",
        mac(DIRECTOR_MAC)
    ));
    for key in ["all", "default", INTERFACE] {
        director
            .sysctl(&format!("ipv4.conf.{key}.rp_filter"), "0")
            .unwrap();
    }
    for vip in [VIP, Ipv4Addr::new(10, 0, 0, 101), FENCE] {
        ip(&format!("address add {vip}/32 dev lo"));
    }
    ip(&format!("-6 address add {VIP6}/128 dev lo nodad"));
    ip(&format!(
        "-6 address add 2001:db8::43/64 dev {INTERFACE} nodad"
    ));
    ip(&format!("-6 route add default dev {INTERFACE}"));
    let neighbour = |address: IpAddr, mac: String| {
        ip(&format!(
            "neigh replace {address} lladdr {mac} dev {INTERFACE} nud permanent"
        ));
    };
    neighbour(CLIENT.into(), mac(CLIENT_MAC));
    for last in (1..=SERVERS).chain([FENCE_SERVER]) {
        neighbour(server(VIP.into(), last), mac(server_mac(last)));
        neighbour(server(VIP6.into(), last), mac(server_mac(last)));
    }
}

/// Sends and hears whole frames on the interface of this namespace.
pub fn wire() -> Socket {
    let all = i32::from(EVERY_PROTOCOL.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all))).unwrap();
    let index = nix::net::if_::if_nametoindex(INTERFACE).unwrap();
    // socket2 has no address of that family.
    // SAFETY: the storage is zeroed and larger than a sockaddr_ll, and the length is set to that.
    let ((), address) = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = EVERY_PROTOCOL.to_be();
            address.sll_ifindex = index.cast_signed();
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }
    .unwrap();
    socket.bind(&address).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    socket
}
