//! The rules of nf_tables that keep packets of services from the host's own sockets: what they drop, and how the guard
//! goes sooner than the rest.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use lab::{Lab, network::INTERFACE};
use lb_user::net::{
    firewall::Firewall,
    nft::{Closed, ForIpvs, Guarded},
};
use socket2::SockRef;

const OWN: [u8; 4] = [10, 1, 15, 43];
const VIP: [u8; 4] = [10, 1, 15, 50];
const UDP: u8 = 17;
const MARKED: ForIpvs = ForIpvs {
    mark: 0x6c73_0000,
    mask: 0xffff_0000,
};
/// On one host a datagram takes microseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether a socket of this host gets what another one sends there.
fn arrives(to: impl Into<SocketAddr>, mark: u32) -> bool {
    let ear = UdpSocket::bind(to.into()).unwrap();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let mouth = UdpSocket::bind("0.0.0.0:0").unwrap();
    SockRef::from(&mouth).set_mark(mark).unwrap();
    // What is dropped on the way in is sent all the same.
    mouth.send_to(b"word", ear.local_addr().unwrap()).unwrap();
    ear.recv(&mut [0; 8]).is_ok()
}

#[test]
fn the_guard_goes_and_all_else_stays() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", OWN).unwrap();
    node.ip(&["address", "add", "10.1.15.50/32", "dev", INTERFACE])
        .unwrap();
    node.within(|| {
        let closed = || {
            vec![Closed {
                address: VIP.into(),
                open: vec![(UDP, 7001..=7001)],
            }]
        };
        let guarded = || {
            vec![Guarded {
                address: OWN.into(),
                protocol: UDP,
                ports: 7000..=7000,
            }]
        };
        // Of a guarded service, beside it, of a closed address, of an open port there, and with a mark.
        let seen = || {
            [
                arrives((OWN, 7000), 0),
                arrives((OWN, 7001), 0),
                arrives((VIP, 7000), 0),
                arrives((VIP, 7001), 0),
                arrives((OWN, 7001), MARKED.mark | 7),
            ]
        };
        let mut firewall = Firewall::default();
        assert_eq!(seen(), [true; 5]);
        firewall.unguard();
        firewall.hold(closed(), guarded(), Some(MARKED)).unwrap();
        assert_eq!(seen(), [false, true, false, true, false]);
        firewall.unguard();
        let rest = [true, true, false, true, false];
        assert_eq!(seen(), rest);
        // It knows what it holds.
        firewall.hold(closed(), Vec::new(), Some(MARKED)).unwrap();
        assert_eq!(seen(), rest);
        firewall.hold(closed(), guarded(), Some(MARKED)).unwrap();
        assert!(!arrives((OWN, 7000), 0));
        firewall.hold(Vec::new(), guarded(), None).unwrap();
        firewall.unguard();
        assert_eq!(seen(), [true; 5]);
        // A table that is there is its owner's; one with nothing to hold is not there.
        let mut other = Firewall::default();
        other.hold(closed(), Vec::new(), None).unwrap_err();
        firewall.hold(Vec::new(), Vec::new(), None).unwrap();
        other.hold(closed(), Vec::new(), None).unwrap();
    })
    .unwrap();
}
