//! Adverts that must not be believed, sent to a running pair.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use lab::{Guide, guide::VIP, network::INTERFACE, wait};
use lb_user::{
    model::{
        AnnounceTiming, Auth, ChecksumForm, Instance, NotifyScripts, Prefix, UnicastTtl, VrrpState,
        VrrpVersion,
    },
    vrrp::packet::AdvertPacket,
};
use socket2::{Domain, Protocol, Socket, Type};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 15, 15, 15);
const FORGER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);

pub fn instance(change: impl FnOnce(&mut Instance)) -> Instance {
    let mut instance = Instance {
        name: "VI_1".into(),
        interface: INTERFACE.into(),
        version: VrrpVersion::V2,
        vrid: 20,
        priority: 250,
        advert_interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        source: None,
        group: GROUP.into(),
        peers: Vec::new(),
        unicast_ttl: UnicastTtl::default(),
        checksum: ChecksumForm::Auto,
        auth: Auth::Pass(*b"6b8a916c"),
        announce: AnnounceTiming::default(),
        addresses: vec![Prefix {
            address: VIP.into(),
            length: 16,
        }],
        excluded: Vec::new(),
        network: Default::default(),
        sync_group: None,
        watches: Vec::new(),
        damping: lb_user::model::LinkDamping::default(),
        notify: NotifyScripts::default(),
    };
    change(&mut instance);
    instance
}

/// An advert of priority 250, which would make node1 yield if it were believed.
pub fn advert(change: impl FnOnce(&mut Instance)) -> Vec<u8> {
    let mut packet = AdvertPacket::new(&instance(change), FORGER.into());
    packet.next(250, Duration::ZERO);
    packet.to(GROUP.into(), ChecksumForm::Auto).to_vec()
}

/// Gives the message a right checksum and the packet a right length again.
pub fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[26..28].fill(0);
    let sum = lb_common::checksum::of(&packet[20..]);
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = advert(|_| {});
    change(&mut packet);
    packet
}

#[test]
fn forged_adverts_are_counted_and_change_nothing() {
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("truncated", changed(|p| p.truncate(34))),
        ("truncated", changed(|p| p.truncate(21))),
        ("oversized", sealed(changed(|p| p.extend([0; 4])))),
        ("wrong_checksum", changed(|p| p[27] ^= 1)),
        ("wrong_ttl", changed(|p| p[8] = 254)),
        (
            "wrong_password",
            advert(|i| i.auth = Auth::Pass(*b"guessed!")),
        ),
        ("wrong_auth_type", advert(|i| i.auth = Auth::None)),
        ("wrong_vrid", advert(|i| i.vrid = 21)),
        (
            "wrong_interval",
            advert(|i| i.advert_interval = Duration::from_secs(2)),
        ),
        ("wrong_version", advert(|i| i.version = VrrpVersion::V3)),
        ("wrong_type", sealed(changed(|p| p[20] = 0x22))),
        (
            "no_address",
            sealed(changed(|p| {
                p.drain(28..32);
                p[23] = 0;
            })),
        ),
    ];
    let guide = Guide::start().unwrap();
    let namespace = guide.client.clone();
    let before = guide.node1.status().unwrap();
    for (_, packet) in &rows {
        let packet = packet.clone();
        namespace.within(move || send(&packet)).unwrap();
    }
    for director in [&guide.node1, &guide.node2] {
        for (reason, _) in &rows {
            let expected = rows.iter().filter(|(other, _)| other == reason).count() as u64;
            let what = format!("{} counts {expected} {reason}", director.node.name);
            wait::until_true(&what, Duration::from_secs(3), || {
                let status = director.status()?;
                let rejected = &status.instances[0].rejected;
                Ok(rejected
                    .iter()
                    .any(|(label, count)| label == reason && *count == expected))
            })
            .unwrap();
        }
    }
    let after = guide.node1.status().unwrap();
    assert_eq!(after.instances[0].state, VrrpState::Master);
    assert_eq!(
        after.instances[0].since, before.instances[0].since,
        "it was MASTER all the time"
    );
    assert_eq!(guide.node2.state("VI_1").unwrap(), VrrpState::Backup);
    // And the same advert without a fault is believed: the test would notice a deaf daemon.
    namespace.within(|| send(&advert(|_| {}))).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Backup).unwrap();
}

pub fn send(packet: &[u8]) {
    send_to(packet, GROUP);
}

/// Sends a whole IP packet to a group.
pub fn send_to(packet: &[u8], group: Ipv4Addr) {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(112))).unwrap();
    socket.set_header_included_v4(true).unwrap();
    socket.bind_device(Some(INTERFACE.as_bytes())).unwrap();
    socket
        .send_to(packet, &SocketAddrV4::new(group, 0).into())
        .unwrap();
}
