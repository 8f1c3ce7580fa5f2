//! Version 3, IPv6, authentication headers and unicast peers.

use std::net::Ipv6Addr;

use super::*;

const V6_SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn third(vrid: u8, addresses: &[[u8; 4]]) -> Instance {
    Instance {
        version: VrrpVersion::V3,
        checksum: ChecksumForm::PseudoHeader,
        ..instance(vrid, STANDARD_GROUP, None, addresses)
    }
}

fn sixth() -> Instance {
    let addresses = [
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x16),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x16),
    ];
    Instance {
        version: VrrpVersion::V3,
        group: IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0x12]),
        addresses: addresses
            .map(|address| Prefix {
                address: address.into(),
                length: 64,
            })
            .to_vec(),
        ..instance(16, STANDARD_GROUP, None, &[])
    }
}

/// As captured from keepalived 2.2.7: source 192.0.2.1, priority 200, VRID 14.
#[test]
fn golden_bytes_of_version_3() {
    let mut instance = third(14, &[[198, 51, 100, 14]]);
    let mut packet = AdvertPacket::new(&instance, SOURCE);
    let bytes = sent(&mut packet, &instance, 200);
    assert_eq!(bytes[20..], hex("310ec801 0064 39b9 c633640e"));
    let advert = decode(&bytes).unwrap().check(&instance).unwrap();
    assert_eq!(advert.interval, Duration::from_secs(1));
    assert_eq!(advert.checksum, ChecksumForm::PseudoHeader);
    instance.advert_interval = Duration::from_millis(100);
    let mut packet = AdvertPacket::new(&instance, SOURCE);
    assert_eq!(sent(&mut packet, &instance, 200)[24..26], hex("000a"));
}

/// RFC 9568's, keepalived's (with the real destination) and FRR's (with VRRP's own group, wherever
/// the packet goes).
#[test]
fn three_forms_of_checksum() {
    let peer = IpAddr::from([192, 0, 2, 2]);
    let unicast = Instance {
        peers: vec![SOURCE],
        ..third(14, &[[198, 51, 100, 14]])
    };
    let mut packet = AdvertPacket::new(&unicast, SOURCE);
    packet.next(100, Duration::ZERO);
    for form in [ChecksumForm::Message, ChecksumForm::PseudoHeader] {
        let advert = decode(packet.to(peer, form)).unwrap().check(&unicast);
        assert_eq!(advert.unwrap().checksum, form);
    }
    // FRR's: sealed for the group, addressed to the peer.
    let mut frr = packet
        .to(unicast.group, ChecksumForm::PseudoHeader)
        .to_vec();
    frr[16..20].copy_from_slice(&[192, 0, 2, 2]);
    let advert = decode(&frr).unwrap().check(&unicast).unwrap();
    assert_eq!(advert.checksum, ChecksumForm::PseudoHeader);
    frr[21] ^= 1;
    assert_eq!(
        decode(&frr).map(|_| ()).err(),
        Some(Rejection::WrongChecksum)
    );
}

#[test]
fn ipv6_has_no_header_of_ours() {
    let instance = sixth();
    let IpAddr::V6(group) = instance.group else {
        unreachable!()
    };
    let mut packet = AdvertPacket::new(&instance, V6_SOURCE.into());
    let message = sent(&mut packet, &instance, 200);
    assert_eq!(message[..6], hex("3110c802 0064"));
    assert_eq!(message.len(), 40);
    let received = decode_v6(V6_SOURCE, group, 255, &message).unwrap();
    let advert = received.check(&instance).unwrap();
    assert!(advert.same_addresses);
    assert_eq!(advert.source, IpAddr::V6(V6_SOURCE));
    let routed = decode_v6(V6_SOURCE, group, 254, &message).unwrap();
    assert_eq!(routed.check(&instance), Err(Rejection::WrongTtl));
    let elsewhere = decode_v6(V6_SOURCE, V6_SOURCE, 255, &message);
    assert_eq!(elsewhere.map(|_| ()).err(), Some(Rejection::WrongChecksum));
    let second = hex("2110c80100010000");
    let old = decode_v6(V6_SOURCE, group, 255, &second);
    assert_eq!(old.map(|_| ()).err(), Some(Rejection::WrongVersion));
}

#[test]
fn versions_do_not_mix() {
    let (second, third) = (
        instance(14, STANDARD_GROUP, None, &[[198, 51, 100, 14]]),
        third(14, &[[198, 51, 100, 14]]),
    );
    for (ours, theirs) in [(&second, &third), (&third, &second)] {
        let bytes = sent(&mut AdvertPacket::new(theirs, SOURCE), theirs, 100);
        let result = decode(&bytes).unwrap().check(ours);
        assert_eq!(result, Err(Rejection::WrongVersion));
    }
    let mut silent = sent(&mut AdvertPacket::new(&third, SOURCE), &third, 100);
    silent[24..26].fill(0);
    // Without the interval the checksum is larger by as much.
    let sum = u16::from_be_bytes([silent[26], silent[27]]) + 0x64;
    silent[26..28].copy_from_slice(&sum.to_be_bytes());
    let result = decode(&silent).unwrap().check(&third);
    assert_eq!(result, Err(Rejection::WrongInterval));
}

#[test]
fn peers_only() {
    let peer = IpAddr::from([192, 0, 2, 1]);
    let ours = Instance {
        peers: vec![peer],
        unicast_ttl: UnicastTtl {
            sent: 64,
            accepted: 60..=70,
        },
        ..third(14, &[[198, 51, 100, 14]])
    };
    let own = IpAddr::from([192, 0, 2, 2]);
    let from = |source: [u8; 4], to: IpAddr, ttl: Option<u8>| {
        let mut packet = AdvertPacket::new(&ours, source.into());
        packet.next(100, Duration::ZERO);
        let mut bytes = packet.to(to, ChecksumForm::Message).to_vec();
        bytes[8] = ttl.unwrap_or(bytes[8]);
        decode(&bytes).unwrap().check(&ours).map(|_| ())
    };
    assert_eq!(from([192, 0, 2, 1], own, None), Ok(()));
    let routed = from([192, 0, 2, 1], own, Some(59));
    assert_eq!(routed, Err(Rejection::WrongTtl));
    let stranger = from([192, 0, 2, 3], own, None);
    assert_eq!(stranger, Err(Rejection::UnknownPeer));
    let to_group = from([192, 0, 2, 1], ours.group, None);
    assert_eq!(to_group, Err(Rejection::WrongGroup));
}

fn authenticated() -> Instance {
    Instance {
        auth: Auth::Ah(padded("secret12")),
        ..instance(12, STANDARD_GROUP, None, &[[198, 51, 100, 12]])
    }
}

#[test]
fn authentication_header() {
    let ours = authenticated();
    let mut packet = AdvertPacket::new(&ours, SOURCE);
    let first = sent(&mut packet, &ours, 200);
    assert_eq!(first[9], 51);
    assert_eq!(first[20..32], hex("70040000 c0000201 00000001"));
    assert_eq!(first[48], 2, "auth type AH");
    let sequence = |bytes: &[u8]| decode(bytes).unwrap().check(&ours).unwrap().sequence;
    assert_eq!(sequence(&first), Some(1));
    let second = sent(&mut packet, &ours, 200);
    assert_eq!(sequence(&second), Some(2));
    for (what, at) in [
        ("TTL", 8),
        ("identification", 5),
        ("sequence", 31),
        ("value", 40),
    ] {
        let mut changed = first.clone();
        changed[at] ^= 1;
        let result = decode(&changed).and_then(|r| r.check(&ours));
        let noticed = matches!(result, Err(Rejection::WrongIcv | Rejection::WrongTtl));
        assert!(noticed, "{what}: {result:?}");
    }
    // What routers may change is not covered.
    let mut marked = first.clone();
    marked[1] = 0;
    assert_eq!(sequence(&marked), Some(1));
    let check = |bytes: &[u8], instance: &Instance| decode(bytes).unwrap().check(instance);
    let mut other_key = ours.clone();
    other_key.auth = Auth::Ah(padded("other"));
    assert_eq!(check(&first, &other_key), Err(Rejection::WrongIcv));
    let open = instance(12, STANDARD_GROUP, None, &[[198, 51, 100, 12]]);
    assert_eq!(check(&first, &open), Err(Rejection::WrongAuthType));
    let plain = sent(&mut AdvertPacket::new(&open, SOURCE), &open, 200);
    assert_eq!(check(&plain, &ours), Err(Rejection::WrongAuthType));
}

/// A changed configuration goes on counting: a peer discards numbers that it has seen.
#[test]
fn numbers_go_on_over_a_reload() {
    let ours = authenticated();
    let mut packet = AdvertPacket::new(&ours, SOURCE);
    sent(&mut packet, &ours, 100);
    packet.count_on_from(40);
    let mut after = AdvertPacket::new(&ours, SOURCE).continuing(&packet);
    assert_eq!(sent(&mut after, &ours, 100)[28..32], [0, 0, 0, 41]);
}

proptest! {
    #[test]
    fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), hops: u8) {
        if let Ok(received) = decode_v6(V6_SOURCE, V6_SOURCE, hops, &bytes) {
            let _ = received.check(&sixth());
        }
        if let Ok(received) = decode(&bytes) {
            let _ = received.check(&authenticated());
        }
    }
}
