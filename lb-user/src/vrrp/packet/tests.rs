use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{
    AnnounceTiming, Auth, Instance, NotifyScripts, Prefix, UnicastTtl, VrrpVersion,
};

mod golden;
mod trailers;
mod versions;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn instance(vrid: u8, group: [u8; 4], password: Option<&str>, addresses: &[[u8; 4]]) -> Instance {
    Instance {
        name: "VI_1".into(),
        interface: "eth0".into(),
        version: VrrpVersion::V2,
        vrid,
        priority: 200,
        advert_interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        source: None,
        group: group.into(),
        peers: Vec::new(),
        unicast_ttl: UnicastTtl::default(),
        checksum: ChecksumForm::Auto,
        auth: password.map_or(Auth::None, |text| Auth::Pass(padded(text))),
        announce: AnnounceTiming::default(),
        addresses: addresses
            .iter()
            .map(|a| Prefix {
                address: (*a).into(),
                length: 32,
            })
            .collect(),
        excluded: Vec::new(),
        network: Default::default(),
        sync_group: None,
        watches: Vec::new(),
        damping: crate::model::LinkDamping::default(),
        notify: NotifyScripts::default(),
    }
}

fn padded(text: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// The packet as it goes to the instance's group.
fn sent(packet: &mut AdvertPacket, instance: &Instance, priority: u8) -> Vec<u8> {
    packet.next(priority, Duration::ZERO);
    packet.to(instance.group, instance.checksum).to_vec()
}

const STANDARD_GROUP: [u8; 4] = [224, 0, 0, 18];
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// As captured from keepalived 2.2.7: source 192.0.2.1, priority 200, VIP 198.51.100.11.
const KEEPALIVED_PLAIN: &str = "45c00028 00010000 ff701891 c0000201 e0000012
     210bc801 0001ecb2 c633640b 00000000 00000000";

#[test]
fn golden_bytes_out() {
    let instance = instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]);
    let mut packet = AdvertPacket::new(&instance, SOURCE);
    assert_eq!(sent(&mut packet, &instance, 200), hex(KEEPALIVED_PLAIN));
    let second = sent(&mut packet, &instance, 0);
    assert_eq!(second[4..6], [0, 2], "identification counts");
    assert_eq!(second[22], 0);
    assert!(decode(&second).is_ok(), "checksum follows the priority");
}

#[test]
fn golden_bytes_in() {
    let packet = hex(KEEPALIVED_PLAIN);
    let received = decode(&packet).unwrap();
    let advert = received
        .check(&instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]))
        .unwrap();
    assert_eq!(
        advert,
        Advert {
            source: SOURCE,
            priority: 200,
            interval: Duration::from_secs(1),
            same_addresses: true,
            checksum: ChecksumForm::Message,
            sequence: None,
            stamp: None,
        }
    );
    assert_eq!(received.vrid, 11);
}

#[test]
fn password_is_padded_and_sent_in_clear() {
    let instance = instance(20, [224, 15, 15, 15], Some("6b8a916c"), &[[10, 1, 15, 50]]);
    let mut packet = AdvertPacket::new(&instance, IpAddr::from([10, 1, 15, 43]));
    let bytes = sent(&mut packet, &instance, 100);
    assert_eq!(&bytes[32..], b"6b8a916c");
    assert_eq!(bytes[24], 1, "auth type PASS");
    assert!(decode(&bytes).unwrap().check(&instance).is_ok());
}

#[test]
fn identification_skips_zero() {
    let instance = instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]);
    let mut packet = AdvertPacket::new(&instance, SOURCE);
    for _ in 0..65_535 {
        sent(&mut packet, &instance, 1);
    }
    assert_eq!(sent(&mut packet, &instance, 1)[4..6], [0, 1]);
}

/// Repairs the message checksum after a change.
fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[26..28].fill(0);
    let sum = checksum::of(&packet[20..]);
    packet[26..28].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn what_is_rejected_and_why() {
    type Change = fn(&mut Vec<u8>);
    let rows: &[(&str, Rejection, Change)] = &[
        ("shorter than an IP header", Rejection::Truncated, |p| {
            p.truncate(19);
        }),
        ("cut in the message", Rejection::Truncated, |p| {
            p.truncate(30);
        }),
        ("an address short", Rejection::Truncated, |p| p[23] = 2),
        ("an address too long", Rejection::Oversized, |p| {
            p.extend([0; 4]);
            p[3] += 4;
        }),
        (
            "IP options but no room for them",
            Rejection::Truncated,
            |p| p[0] = 0x4f,
        ),
        ("another protocol", Rejection::NotVrrp, |p| p[9] = 6),
        ("IP version 6", Rejection::NotVrrp, |p| p[0] = 0x65),
        ("routed", Rejection::WrongTtl, |p| p[8] = 254),
        ("version 4", Rejection::WrongVersion, |p| p[20] = 0x41),
        ("type 2", Rejection::WrongType, |p| p[20] = 0x22),
        ("password", Rejection::WrongAuthType, |p| p[24] = 1),
        ("interval", Rejection::WrongInterval, |p| p[25] = 2),
        ("group", Rejection::WrongGroup, |p| p[19] = 19),
    ];
    let instance = instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]);
    for (what, expected, change) in rows {
        let mut packet = hex(KEEPALIVED_PLAIN);
        change(&mut packet);
        let packet = if packet.len() >= 40 {
            sealed(packet)
        } else {
            packet
        };
        let result = decode(&packet).and_then(|received| received.check(&instance));
        assert_eq!(result, Err(*expected), "{what}");
    }
    let mut packet = hex(KEEPALIVED_PLAIN);
    packet[22] ^= 1;
    assert_eq!(decode(&packet).map(|_| ()), Err(Rejection::WrongChecksum));
    let mut empty = hex(KEEPALIVED_PLAIN);
    empty.drain(28..32);
    empty[3] -= 4;
    empty[23] = 0;
    assert_eq!(
        decode(&sealed(empty)).map(|_| ()),
        Err(Rejection::NoAddress)
    );
}

#[test]
fn wrong_password_is_told_from_no_password() {
    let ours = instance(20, STANDARD_GROUP, Some("6b8a916c"), &[[10, 1, 15, 50]]);
    let theirs = instance(20, STANDARD_GROUP, Some("secret"), &[[10, 1, 15, 50]]);
    let open = instance(20, STANDARD_GROUP, None, &[[10, 1, 15, 50]]);
    let check = |sender: &Instance| {
        let mut packet = AdvertPacket::new(sender, SOURCE);
        decode(&sent(&mut packet, sender, 100))
            .unwrap()
            .check(&ours)
    };
    assert_eq!(check(&theirs), Err(Rejection::WrongPassword));
    assert_eq!(check(&open), Err(Rejection::WrongAuthType));
    assert!(check(&ours).is_ok());
}

#[test]
fn another_address_list_is_noted_not_discarded() {
    let ours = instance(
        20,
        STANDARD_GROUP,
        None,
        &[[10, 1, 15, 50], [10, 1, 15, 51]],
    );
    for (list, same) in [
        (&[[10, 1, 15, 51], [10, 1, 15, 50]][..], true),
        (&[[10, 1, 15, 50]][..], false),
        (&[[10, 1, 15, 50], [10, 1, 15, 52]][..], false),
    ] {
        let theirs = instance(20, STANDARD_GROUP, None, list);
        let bytes = sent(&mut AdvertPacket::new(&theirs, SOURCE), &theirs, 100);
        let advert = decode(&bytes).unwrap().check(&ours).unwrap();
        assert_eq!(advert.same_addresses, same, "{list:?}");
    }
}

#[test]
fn ethernet_padding_is_legal() {
    let mut packet = hex(KEEPALIVED_PLAIN);
    packet.extend([0xaa; 6]);
    assert!(decode(&packet).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let instance = instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]);
        if let Ok(received) = decode(&bytes) {
            let _ = received.check(&instance);
        }
    }

    /// One flipped bit anywhere in the message is noticed.
    #[test]
    fn one_bit_is_noticed(bit in 160usize..320) {
        let instance = instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]]);
        let mut packet = hex(KEEPALIVED_PLAIN);
        packet[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(&packet).and_then(|r| r.check(&instance)).is_err());
    }
}
