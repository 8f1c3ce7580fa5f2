//! Every form of an advert as bytes, both ways. "Seen" rows are captures of keepalived 2.2.7; the others
//! were computed from the RFCs, and for authentication headers from keepalived's rules, by a program that shares
//! no code with this.

use std::net::Ipv6Addr;

use super::*;

/// One form: how an instance is made of the plain one, where its packet goes, and the packet.
struct Form {
    name: &'static str,
    instance: Instance,
    priority: u8,
    source: IpAddr,
    to: IpAddr,
    /// With IP header over IPv4, the message alone over IPv6.
    bytes: &'static str,
}

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

fn plain(name: &'static str, vrid: u8, bytes: &'static str) -> Form {
    Form {
        name,
        instance: instance(vrid, STANDARD_GROUP, None, &[[198, 51, 100, vrid]]),
        priority: 200,
        source: SOURCE,
        to: IpAddr::from(STANDARD_GROUP),
        bytes,
    }
}

fn third(form: Form, checksum: ChecksumForm) -> Form {
    let instance = Instance {
        version: VrrpVersion::V3,
        checksum,
        ..form.instance
    };
    Form { instance, ..form }
}

fn to_peer(form: Form) -> Form {
    let instance = Instance {
        // On one side the peer is the receiver, on the other the sender.
        peers: vec![PEER, SOURCE],
        ..form.instance
    };
    Form {
        instance,
        to: PEER,
        ..form
    }
}

fn authenticated(form: Form, auth: Auth) -> Form {
    let instance = Instance {
        auth,
        ..form.instance
    };
    Form { instance, ..form }
}

fn forms() -> Vec<Form> {
    use ChecksumForm::{Message, PseudoHeader};
    let addresses = |list: &[IpAddr]| -> Vec<Prefix> {
        let prefix = |address: &IpAddr| Prefix {
            address: *address,
            length: if address.is_ipv6() { 64 } else { 32 },
        };
        list.iter().map(prefix).collect()
    };
    let stopping = |form: Form| Form {
        priority: 0,
        ..form
    };
    let mut several = plain(
        "version 2, two addresses, every 3 s",
        11,
        "45c0002c 00010000 ff70188d c0000201 e0000012 210bc802 0003c26f c633640b c633640c 00000000 00000000",
    );
    several.instance.addresses = addresses(&[[198, 51, 100, 11].into(), [198, 51, 100, 12].into()]);
    several.instance.advert_interval = Duration::from_secs(3);
    let mut fast = third(
        plain(
            "version 3, every 100 ms",
            14,
            "45c00020 00010000 ff701899 c0000201 e0000012 310ec801 000a3a13 c633640e",
        ),
        PseudoHeader,
    );
    fast.instance.advert_interval = Duration::from_millis(100);
    let mut sixth = third(
        plain(
            "version 3 over IPv6",
            16,
            "3110c802 0064dbf3 fe800000 00000000 00000000 00000016 20010db8 00000000 00000000 00000016",
        ),
        PseudoHeader,
    );
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
    sixth.instance.group = group.into();
    sixth.instance.addresses = addresses(&[
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x16).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x16).into(),
    ]);
    sixth.source = LINK_LOCAL;
    sixth.to = group.into();
    vec![
        plain("version 2 (seen)", 11, KEEPALIVED_PLAIN),
        stopping(plain(
            "version 2, stopping",
            11,
            "45c00028 00010000 ff701891 c0000201 e0000012 210b0001 0001b4b3 c633640b 00000000 00000000",
        )),
        several,
        authenticated(
            plain(
                "PASS",
                20,
                "45c00028 00010000 ff701891 c0000201 e0000012 2114c801 01017e22 c6336414 73656372 65743132",
            ),
            Auth::Pass(*b"secret12"),
        ),
        authenticated(
            plain(
                "PASS, padded",
                20,
                "45c00028 00010000 ff701891 c0000201 e0000012 2114c801 0101273e c6336414 61626300 00000000",
            ),
            Auth::Pass(padded("abc")),
        ),
        authenticated(
            plain(
                "authentication header",
                12,
                "45c00040 00010000 ff3318b6 c0000201 e0000012 70040000 c0000201 00000001 f7f4f1be \
                 adbf4666 ab8b719c 210cc801 0201eab0 c633640c 00000000 00000000",
            ),
            Auth::Ah(*b"secret12"),
        ),
        // Its TTL is not covered there.
        authenticated(
            to_peer(plain(
                "authentication header to a peer",
                12,
                "45c00040 00010000 ff3336c6 c0000201 c0000202 70040000 c0000201 00000001 17f4479e \
                 8d306177 100c27bd 210cc801 0201eab0 c633640c 00000000 00000000",
            )),
            Auth::Ah(*b"secret12"),
        ),
        third(
            plain(
                "version 3, keepalived's checksum (seen)",
                14,
                "45c00020 00010000 ff701899 c0000201 e0000012 310ec801 006439b9 c633640e",
            ),
            PseudoHeader,
        ),
        third(
            plain(
                "version 3, RFC 9568's checksum",
                14,
                "45c00020 00010000 ff701899 c0000201 e0000012 310ec801 0064dc49 c633640e",
            ),
            Message,
        ),
        fast,
        third(
            to_peer(plain(
                "version 3 to a peer, keepalived's checksum",
                14,
                "45c00020 00010000 ff7036a9 c0000201 c0000202 310ec801 006457c9 c633640e",
            )),
            PseudoHeader,
        ),
        sixth,
    ]
}

fn read(form: &Form, bytes: &[u8]) -> Result<Advert, Rejection> {
    let received = match (form.source, form.to) {
        (IpAddr::V6(source), IpAddr::V6(to)) => decode_v6(source, to, 255, bytes),
        _ => decode(bytes),
    };
    received.and_then(|received| received.check(&form.instance))
}

#[test]
fn every_form_out() {
    for form in forms() {
        let mut packet = AdvertPacket::new(&form.instance, form.source);
        packet.next(form.priority, Duration::ZERO);
        let bytes = packet.to(form.to, form.instance.checksum);
        assert_eq!(bytes, hex(form.bytes), "{}", form.name);
    }
}

#[test]
fn every_form_in() {
    for form in forms() {
        let advert = read(&form, &hex(form.bytes)).unwrap_or_else(|e| panic!("{}: {e}", form.name));
        let name = form.name;
        assert_eq!(advert.source, form.source, "{name}");
        assert_eq!(advert.priority, form.priority, "{name}");
        assert_eq!(advert.interval, form.instance.advert_interval, "{name}");
        assert!(advert.same_addresses, "{name}");
        let checksum = match form.instance.checksum {
            ChecksumForm::Auto => ChecksumForm::Message,
            told => told,
        };
        assert_eq!(advert.checksum, checksum, "{name}");
        let sequence = matches!(form.instance.auth, Auth::Ah(_)).then_some(1);
        assert_eq!(advert.sequence, sequence, "{name}");
    }
}

/// FRR's: the checksum of VRRP's own group, wherever the packet goes. Only read, never sent.
#[test]
fn frrs_checksum_to_a_peer() {
    let form = third(
        to_peer(plain(
            "FRR to a peer",
            14,
            "45c00020 00010000 ff7036a9 c0000201 c0000202 310ec801 006439b9 c633640e",
        )),
        ChecksumForm::PseudoHeader,
    );
    let advert = read(&form, &hex(form.bytes)).unwrap();
    assert_eq!(advert.checksum, ChecksumForm::PseudoHeader);
}

proptest! {
    /// A flipped bit of the message is noticed in every form.
    #[test]
    fn one_bit_of_any_form_is_noticed(form in 0usize..12, place: prop::sample::Index, bit in 0u8..8) {
        let form = &forms()[form];
        let mut bytes = hex(form.bytes);
        let header = if form.source.is_ipv6() { 0 } else { 20 };
        let at = header + place.index(bytes.len() - header);
        bytes[at] ^= 1 << bit;
        prop_assert!(read(form, &bytes).is_err(), "{}: byte {at}", form.name);
    }

    /// No form lets a part of itself pass for the whole.
    #[test]
    fn a_part_of_any_form_is_refused(form in 0usize..12, place: prop::sample::Index) {
        let form = &forms()[form];
        let bytes = hex(form.bytes);
        let part = &bytes[..place.index(bytes.len())];
        prop_assert!(read(form, part).is_err(), "{}: {} bytes", form.name, part.len());
    }
}
