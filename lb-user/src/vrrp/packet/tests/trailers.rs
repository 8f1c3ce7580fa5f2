//! Trailers: keepalived's published bytes, both ways, and everything that makes one wrong.

use std::net::Ipv6Addr;

use super::*;
use crate::model::{HmacAuth, HmacKey, HmacMode, Secret};

/// 2025-03-27, and a half second.
const WALL: Duration = Duration::new(0x6800_0000, 500_000_000);
const WINDOW: Option<Duration> = Some(Duration::from_secs(5));

fn key(id: u8, secret: impl Into<Vec<u8>>) -> HmacKey {
    HmacKey {
        id,
        secret: Secret::new(secret.into()),
        file: None,
    }
}

fn hmac(keys: Vec<HmacKey>, active: u8) -> HmacAuth {
    HmacAuth {
        keys,
        active,
        window: WINDOW,
        mode: HmacMode::Enforce,
    }
}

fn published_key() -> HmacAuth {
    hmac(vec![key(1, (0..32).collect::<Vec<u8>>())], 1)
}

/// The instance of the draft's example for IPv4.
fn fourth() -> Instance {
    Instance {
        version: VrrpVersion::V3,
        checksum: ChecksumForm::Message,
        auth: Auth::Hmac(published_key()),
        ..instance(51, STANDARD_GROUP, None, &[[192, 0, 2, 100]])
    }
}

/// The one for IPv6, spoken to a peer.
fn sixth() -> Instance {
    Instance {
        group: IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 0x12]),
        peers: vec![V6_SOURCE.into(), V6_PEER.into()],
        addresses: vec![Prefix {
            address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100).into(),
            length: 64,
        }],
        ..fourth()
    }
}

const V4_SOURCE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const V6_SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
const V6_PEER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x20);

/// draft-cassen-vrrp-auth-hmac-00, appendix; keepalived tests itself against the same bytes. Key 00 to 1f,
/// stamp 0x6800000080000000.
const PUBLISHED_V4: &str = "3133c801 00644402 c0000264
     01010000 68000000 80000000 1b84bc4e 8e43892d c6d98448 f8ee2265";
/// To fe80::20.
const PUBLISHED_V6: &str = "3133c801 0064a2e9 fe800000 00000000 00000000 00000100
     01010000 68000000 80000000 c8c56146 ebfd66ee 10ec4d81 86461b78";

#[test]
fn published_bytes_out() {
    let v4 = fourth();
    let mut packet = AdvertPacket::new(&v4, V4_SOURCE.into());
    packet.next(200, WALL);
    assert_eq!(
        packet.to(v4.group, ChecksumForm::Message)[20..],
        hex(PUBLISHED_V4)
    );
    let mut packet = AdvertPacket::new(&sixth(), V6_SOURCE.into());
    packet.next(200, WALL);
    assert_eq!(
        packet.to(V6_PEER.into(), ChecksumForm::Auto),
        hex(PUBLISHED_V6)
    );
}

#[test]
fn published_bytes_in() {
    let message = hex(PUBLISHED_V6);
    let received = decode_v6(V6_SOURCE, V6_PEER, 255, &message).unwrap();
    let stamp = Stamp::of(WALL);
    assert_eq!(received.claimed_stamp(), Some(stamp));
    let advert = received.check(&sixth()).unwrap();
    assert_eq!((advert.priority, advert.stamp), (200, Some(stamp)));
    let packet = v4_packet(&hex(PUBLISHED_V4));
    let advert = decode(&packet).unwrap().check(&fourth()).unwrap();
    assert_eq!((advert.priority, advert.stamp), (200, Some(stamp)));
    assert!(advert.same_addresses);
}

/// Version 2, with a key of text, in the second advert of a moment. Computed with Python's hmac.
#[test]
fn version_2_as_another_implementation_computes_it() {
    let second = Instance {
        auth: Auth::Hmac(hmac(vec![key(7, [b'k'; 40])], 7)),
        ..instance(11, STANDARD_GROUP, None, &[[198, 51, 100, 11]])
    };
    let mut packet = AdvertPacket::new(&second, SOURCE);
    let wall = Duration::new(0x6800_0000, 250_000_000);
    packet.next(100, wall);
    packet.next(200, wall);
    let bytes = packet.to(second.group, ChecksumForm::Auto).to_vec();
    let expected = "210bc801 0001ecb2 c633640b 00000000 00000000
         01070000 68000000 40000001 9a9fa500 f9264a9a 01476e9d 520828cf";
    assert_eq!(bytes[20..], hex(expected));
    assert!(decode(&bytes).unwrap().check(&second).is_ok());
}

fn v4_packet(message: &[u8]) -> Vec<u8> {
    let mut packet = vec![
        0x45,
        0xc0,
        0,
        (20 + message.len()) as u8,
        0,
        1,
        0,
        0,
        255,
        112,
        0,
        0,
    ];
    packet.extend(V4_SOURCE.octets());
    packet.extend(STANDARD_GROUP);
    packet.extend(message);
    packet
}

#[test]
fn every_bit_but_the_checksum_is_covered() {
    let instance = sixth();
    let message = hex(PUBLISHED_V6);
    for bit in 0..message.len() * 8 {
        let mut changed = message.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // Whoever changes the message computes a checksum for it.
        changed[6..8].fill(0);
        let start = pseudo_header(V6_SOURCE.into(), V6_PEER.into(), changed.len());
        let sum = checksum::finish(checksum::sum(start, &changed));
        changed[6..8].copy_from_slice(&sum.to_be_bytes());
        let result = decode_v6(V6_SOURCE, V6_PEER, 255, &changed).and_then(|r| r.check(&instance));
        let is_checksum = (48..64).contains(&bit);
        assert_eq!(result.is_ok(), is_checksum, "bit {bit}: {result:?}");
    }
}

#[test]
fn what_is_wrong_with_a_trailer() {
    let ours = fourth();
    let packet = v4_packet(&hex(PUBLISHED_V4));
    let judged = |packet: &[u8], instance: &Instance| {
        decode(packet).and_then(|r| r.check(instance)).map(|_| ())
    };
    let changed = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[20 + 12 + at] = value;
        packet
    };
    assert_eq!(judged(&packet, &ours), Ok(()));
    let rows = [
        (changed(0, 2), Rejection::MalformedTrailer),
        (changed(3, 1), Rejection::MalformedTrailer),
        (changed(1, 2), Rejection::UnknownKey),
        (changed(11, 1), Rejection::WrongHmac),
        (changed(27, 0), Rejection::WrongHmac),
    ];
    for (packet, why) in rows {
        assert_eq!(judged(&packet, &ours), Err(why));
    }
    // Another sender, another virtual router with the same key.
    let mut moved = packet.clone();
    moved[15] ^= 1;
    assert_eq!(judged(&moved, &ours), Err(Rejection::WrongHmac));
    let other = Instance {
        vrid: 52,
        ..ours.clone()
    };
    assert_eq!(judged(&packet, &other), Err(Rejection::WrongHmac));
    // A part of a trailer, and one more byte.
    let mut cut = packet.clone();
    cut.pop();
    cut[3] -= 1;
    assert_eq!(judged(&cut, &ours), Err(Rejection::Oversized));
    let mut long = packet.clone();
    long.push(0);
    long[3] += 1;
    assert_eq!(judged(&long, &ours), Err(Rejection::Oversized));
    // One that knows no trailers.
    let plain = Instance {
        auth: Auth::None,
        ..ours.clone()
    };
    assert_eq!(judged(&packet, &plain), Err(Rejection::WrongAuthType));
}

fn in_mode(mode: HmacMode) -> Instance {
    Instance {
        auth: Auth::Hmac(HmacAuth {
            mode,
            ..published_key()
        }),
        ..fourth()
    }
}

/// The steps to a pair that authenticates: every one is heard by the next.
#[test]
fn a_pair_begins_to_authenticate_without_losing_an_advert() {
    let none = Instance {
        auth: Auth::None,
        ..fourth()
    };
    let [receive, permit, enforce] = [
        HmacMode::ReceiveOnly,
        HmacMode::Permissive,
        HmacMode::Enforce,
    ]
    .map(in_mode);
    let hears = |listener: &Instance, speaker: &Instance| {
        let mut packet = AdvertPacket::new(speaker, V4_SOURCE.into());
        packet.next(100, WALL);
        let bytes = packet.to(speaker.group, ChecksumForm::Message);
        decode(bytes).and_then(|r| r.check(listener)).map(|_| ())
    };
    for (before, after) in [(&none, &receive), (&receive, &permit), (&permit, &enforce)] {
        assert_eq!(hears(before, after), Ok(()));
        assert_eq!(hears(after, before), Ok(()));
    }
    assert_eq!(hears(&enforce, &none), Err(Rejection::Unsigned));
    assert_eq!(hears(&none, &enforce), Err(Rejection::WrongAuthType));
}

/// The steps from one key to another: every one is heard by the next, and the stamps grow.
#[test]
fn a_key_is_changed_without_losing_an_advert() {
    let (old, new) = (key(1, [1; 32]), key(2, [2; 32]));
    let steps = [
        hmac(vec![old.clone()], 1),
        hmac(vec![old.clone(), new.clone()], 1),
        hmac(vec![old, new.clone()], 2),
        hmac(vec![new], 2),
    ]
    .map(|hmac| Instance {
        auth: Auth::Hmac(hmac),
        ..fourth()
    });
    for pair in steps.windows(2) {
        let mut before = AdvertPacket::new(&pair[0], V4_SOURCE.into());
        before.next(100, WALL);
        let mut after = AdvertPacket::new(&pair[1], V4_SOURCE.into()).continuing(&before);
        after.next(100, WALL);
        let group = fourth().group;
        let first = before.to(group, ChecksumForm::Message).to_vec();
        let second = after.to(group, ChecksumForm::Message).to_vec();
        let stamp = |bytes: &[u8], by: &Instance| {
            let advert = decode(bytes).unwrap().check(by).unwrap();
            advert.stamp.unwrap()
        };
        let heard = stamp(&first, &pair[1]);
        assert!(stamp(&second, &pair[0]).is_after(heard));
    }
    let mut last = AdvertPacket::new(&steps[3], V4_SOURCE.into());
    last.next(100, WALL);
    let result = decode(last.to(fourth().group, ChecksumForm::Message)).unwrap();
    assert_eq!(result.check(&steps[0]), Err(Rejection::UnknownKey));
}

#[test]
fn all_copies_of_an_advert_have_one_trailer() {
    let unicast = Instance {
        peers: vec![
            IpAddr::from([198, 51, 100, 11]),
            IpAddr::from([198, 51, 100, 12]),
        ],
        ..fourth()
    };
    let mut packet = AdvertPacket::new(&unicast, V4_SOURCE.into());
    packet.next(100, WALL);
    let copies: Vec<_> = unicast
        .peers
        .iter()
        .map(|peer| packet.to(*peer, ChecksumForm::PseudoHeader)[32..].to_vec())
        .collect();
    assert_eq!(copies[0], copies[1]);
}

#[test]
fn stamps() {
    let second = Duration::from_secs(1);
    let first = Stamp::of(WALL);
    assert_eq!(first.next(WALL + second, WINDOW), Stamp::of(WALL + second));
    let again = first.next(WALL, WINDOW);
    assert!(again.is_after(first), "the clock stands still");
    assert!(!first.is_after(again) && !first.is_after(first));
    let back = again.next(WALL - second, WINDOW);
    assert!(back.is_after(again), "the clock went back a little");
    let hour = Duration::from_secs(3_600);
    assert_eq!(back.next(WALL - hour, WINDOW), Stamp::of(WALL - hour));
    assert!(back.next(WALL - hour, None).is_after(back), "no window");
    for (off, timely) in [(0, true), (5, true), (6, false)] {
        let off = Duration::from_secs(off);
        let window = Duration::from_secs(5);
        assert_eq!(first.is_within(window, WALL + off), timely);
        assert_eq!(first.is_within(window, WALL - off), timely);
    }
    // The first one is the clock's, also in 2040, which is not after 1970 as serial numbers go.
    let monotonic = Instance {
        auth: Auth::Hmac(HmacAuth {
            window: None,
            ..published_key()
        }),
        ..fourth()
    };
    let later = Duration::from_secs(0x8400_0000);
    let mut packet = AdvertPacket::new(&monotonic, V4_SOURCE.into());
    packet.next(100, later);
    let bytes = packet.to(monotonic.group, ChecksumForm::Message);
    assert_eq!(
        decode(bytes).unwrap().claimed_stamp(),
        Some(Stamp::of(later))
    );
    // The seconds wrap in 2106.
    let last = Duration::from_secs(0xffff_ffff);
    let wrapped = Stamp::of(last + second);
    assert!(wrapped.is_after(Stamp::of(last)));
    assert!(wrapped.is_within(Duration::from_secs(1), last));
}
