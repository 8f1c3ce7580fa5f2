//! The program in the kernel without an interface: a plan, one packet at a time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use etherparse::{PacketBuilder, TcpHeader, TransportHeader, UdpHeader};
use lab::{Lab, Node};
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        plan::{BackendState, PlannedBackend, PlannedService},
        xdp::Xdp,
    },
    model::{
        DataplaneConfig, FlowTimeouts, Hop, Neighbour, Protection, Protocol, Scheduler, ServiceId,
        Target,
    },
};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);
pub const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x43];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// Test runs come in on the loopback device of the namespace.
pub const INGRESS: u32 = 1;

pub const PASS: u32 = 2;
/// VLANs of the director, outer id first.
pub const OWN_VLANS: [[u16; 2]; 2] = [[100, 0], [100, 7]];
pub const TX: u32 = 3;
pub const REDIRECT: u32 = 4;

/// MAC address of the real server 10.0.0.LAST.
pub fn server_mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

pub fn timeouts() -> FlowTimeouts {
    FlowTimeouts {
        tcp: std::time::Duration::from_secs(900),
        tcp_closing: std::time::Duration::from_secs(120),
        tcp_half_open: std::time::Duration::from_secs(60),
        udp: std::time::Duration::from_secs(300),
    }
}

/// Slots of the smallest table.
pub const SMALL: u32 = lb_common::limits::CHUNK_SLOTS;

/// Loads the program with tables of `flow_slots`, which do not grow.
pub fn load(flow_slots: u32) -> Xdp {
    load_growing(flow_slots, flow_slots)
}

/// Loads the program with tables of `flow_slots`, which grow up to `max_flow_slots`.
pub fn load_growing(flow_slots: u32, max_flow_slots: u32) -> Xdp {
    let config = DataplaneConfig {
        interfaces: Vec::new(),
        mode: lb_user::model::Mode::Xdp,
        allow_generic: false,
        flow_slots,
        max_flow_slots,
        timeouts: timeouts(),
        protection: Protection::default(),
    };
    let mut xdp = Xdp::unattached(&config).unwrap();
    let vlans = OWN_VLANS.map(|vlan| (INGRESS, vlan));
    xdp.set_own_addresses(&[(INGRESS, DIRECTOR_MAC), (INGRESS, [6; 6])], &vlans);
    xdp
}

/// Runs `work` in a namespace with a second interface of index 2.
pub fn in_namespace<T: Send>(work: impl FnOnce(&Node) -> T + Send) -> T {
    let lab = Lab::new().unwrap();
    let node = lab.node("director", [10, 0, 0, 43]).unwrap();
    node.within(|| work(&node)).unwrap()
}

/// A service of `VIP` with real servers 10.0.0.LAST of these weights and states.
pub fn service(
    protocol: Protocol,
    port: u16,
    role: u16,
    servers: &[(u8, u32, BackendState)],
) -> PlannedService {
    let backends = servers
        .iter()
        .map(|(last, weight, state)| {
            PlannedBackend::new(Target::Host(server(*last)), *weight, *state)
        })
        .collect();
    let id = ServiceId::new(protocol, SocketAddr::new(VIP.into(), port));
    PlannedService::new(id, role, Scheduler::Wrr, backends)
}

/// Address of a real server.
pub fn server(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

/// Applies services and makes role 1 master.
pub fn apply(xdp: &mut Xdp, services: Vec<PlannedService>) {
    xdp.apply(&Plan::of(services)).unwrap();
    xdp.set_role(1, true);
}

/// Tells where 10.0.0.LAST is.
pub fn resolve(xdp: &mut Xdp, last: u8, ifindex: u32) {
    let hop = Hop::on_link(server_mac(last), ifindex, DIRECTOR_MAC);
    xdp.set_neighbour(server(last), Some(Neighbour::Host(hop)));
}

/// TCP flags by letter.
pub fn tcp(port: u16, vport: u16, flags: &str) -> Vec<u8> {
    frame(CLIENT, VIP, 64, transport(port, vport, flags), b"payload")
}

pub fn udp(port: u16, vport: u16) -> Vec<u8> {
    let header = UdpHeader {
        source_port: port,
        destination_port: vport,
        ..UdpHeader::default()
    };
    frame(CLIENT, VIP, 64, TransportHeader::Udp(header), b"payload")
}

pub fn transport(port: u16, vport: u16, flags: &str) -> TransportHeader {
    let mut header = TcpHeader::new(port, vport, 1000, 512);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.psh = flags.contains('P');
    TransportHeader::Tcp(header)
}

/// A frame for the director, built and checksummed by etherparse.
pub fn frame(
    from: Ipv4Addr,
    to: Ipv4Addr,
    ttl: u8,
    transport: TransportHeader,
    payload: &[u8],
) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC).ipv4(from.octets(), to.octets(), ttl);
    let mut bytes = Vec::new();
    match transport {
        TransportHeader::Tcp(header) => builder
            .tcp_header(header)
            .write(&mut bytes, payload)
            .unwrap(),
        TransportHeader::Udp(header) => {
            builder
                .udp(header.source_port, header.destination_port)
                .write(&mut bytes, payload)
                .unwrap();
        }
        other => panic!("{other:?}"),
    }
    bytes
}

/// What direct return to 10.0.0.LAST makes of a frame, computed the long way: new addresses, a
/// lower TTL, the whole header checksum again.
pub fn direct(frame: &[u8], last: u8) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[0..6].copy_from_slice(&server_mac(last));
    out[6..12].copy_from_slice(&DIRECTOR_MAC);
    out[22] -= 1;
    out[24..26].fill(0);
    let length = usize::from(out[14] & 0x0f) * 4;
    let header = etherparse::Ipv4Header::from_slice(&out[14..14 + length])
        .unwrap()
        .0;
    out[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    out
}

/// The last byte of the real server's address that a frame was sent to; panics where it is not forwarded.
pub fn server_of(xdp: &mut Xdp, frame: &[u8]) -> u8 {
    server_if_any(xdp, frame).unwrap()
}

/// The same; `None` where the frame is passed on.
pub fn server_if_any(xdp: &mut Xdp, frame: &[u8]) -> Option<u8> {
    let (verdict, out) = xdp.run(frame, 0).unwrap();
    if verdict == PASS {
        return None;
    }
    assert_eq!(verdict, TX);
    assert_eq!(out, direct(frame, out[5]));
    Some(out[5])
}

/// How often packets passed for `reason`.
pub fn passed(xdp: &mut Xdp, reason: &str) -> u64 {
    xdp.snapshot()
        .passed
        .iter()
        .find(|(label, _)| label == reason)
        .unwrap()
        .1
}
