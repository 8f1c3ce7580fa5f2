//! What the program answers for a real server that is down, where the service wants clients to know. Every
//! expected answer is built by etherparse.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{
    IpHeaders, Ipv4Header, Ipv4Options, PacketBuilder, PacketBuilderStep, TcpHeader,
    TcpOptionElement,
};
use lb_user::{
    dataplane::{
        plan::BackendState::{Down, Resetting, Up},
        xdp::Xdp,
    },
    model::{Protocol::Tcp, ServiceId},
};

use crate::program::{
    CLIENT, CLIENT_MAC, DIRECTOR_MAC, INGRESS, PASS, SMALL, TX, VIP, apply, in_namespace, load,
    passed, resolve, server_of, service, tcp,
};

const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x909);
const PORT: u16 = 40_001;
const SEQUENCE: u32 = 0xffff_fff0;
const ACKNOWLEDGEMENT: u32 = 0x1234_5678;

/// What differs between segments.
#[derive(Clone, Copy, Debug)]
struct Row {
    flags: &'static str,
    payload: usize,
    /// Sequence, acknowledgement and flags of the answer.
    answer: (u32, u32, &'static str),
}

const ROWS: [Row; 5] = [
    Row {
        flags: "A",
        payload: 0,
        answer: (ACKNOWLEDGEMENT, 0, "R"),
    },
    Row {
        flags: "PA",
        payload: 1_000,
        answer: (ACKNOWLEDGEMENT, 0, "R"),
    },
    Row {
        flags: "FA",
        payload: 1,
        answer: (ACKNOWLEDGEMENT, 0, "R"),
    },
    // Nothing is acknowledged: all of the segment is.
    Row {
        flags: "P",
        payload: 33,
        answer: (0, SEQUENCE.wrapping_add(33), "RA"),
    },
    Row {
        flags: "F",
        payload: 33,
        answer: (0, SEQUENCE.wrapping_add(34), "RA"),
    },
];

/// A kind of packet around the segment.
#[derive(Clone, Copy, Debug)]
enum Shape {
    V4,
    V4Options,
    V6,
    Vlan,
}

impl Shape {
    fn link(
        self,
        from: [u8; 6],
        to: [u8; 6],
        client_to_vip: bool,
        answer: bool,
    ) -> PacketBuilderStep<IpHeaders> {
        let (a, b): (IpAddr, IpAddr) = match self {
            Shape::V6 => (CLIENT6.into(), VIP6.into()),
            _ => (CLIENT.into(), VIP.into()),
        };
        let (source, destination) = if client_to_vip { (a, b) } else { (b, a) };
        let builder = PacketBuilder::ethernet2(from, to);
        match (self, source, destination) {
            (Shape::V6, IpAddr::V6(source), IpAddr::V6(destination)) => {
                builder.ipv6(source.octets(), destination.octets(), 64)
            }
            (shape, IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    0,
                    64,
                    etherparse::IpNumber::TCP,
                    source.octets(),
                    destination.octets(),
                )
                .unwrap();
                if matches!(shape, Shape::V4Options) && !answer {
                    header.options =
                        Ipv4Options::try_from(&[1u8, 1, 1, 1, 1, 1, 1, 0][..]).unwrap();
                }
                let headers = IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
                match shape {
                    Shape::Vlan => builder.single_vlan(100.try_into().unwrap()).ip(headers),
                    _ => builder.ip(headers),
                }
            }
            _ => panic!("two families"),
        }
    }

    fn segment(self, row: &Row, port: u16, options: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(port, 80, SEQUENCE, 512);
        flag(&mut header, row.flags);
        header.acknowledgment_number = ACKNOWLEDGEMENT;
        if options {
            header
                .set_options(&[TcpOptionElement::Timestamp(1, 2)])
                .unwrap();
        }
        let mut bytes = Vec::new();
        let payload = vec![0xa5; row.payload];
        self.link(CLIENT_MAC, DIRECTOR_MAC, true, false)
            .tcp_header(header)
            .write(&mut bytes, &payload)
            .unwrap();
        bytes
    }

    fn answer(self, row: &Row, port: u16) -> Vec<u8> {
        let (sequence, acknowledgement, flags) = row.answer;
        let mut header = TcpHeader::new(80, port, sequence, 0);
        flag(&mut header, flags);
        header.acknowledgment_number = acknowledgement;
        let mut bytes = Vec::new();
        self.link(DIRECTOR_MAC, CLIENT_MAC, false, true)
            .tcp_header(header)
            .write(&mut bytes, &[])
            .unwrap();
        bytes
    }
}

fn flag(header: &mut TcpHeader, flags: &str) {
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.psh = flags.contains('P');
}

fn services(
    state: lb_user::dataplane::plan::BackendState,
) -> Vec<lb_user::dataplane::plan::PlannedService> {
    let v4 = service(Tcp, 80, 1, &[(1, 1, state)]);
    let mut v6 = v4.clone();
    v6.id = ServiceId::new(Tcp, SocketAddr::new(VIP6.into(), 80));
    vec![v4, v6]
}

/// Flows from `count` ports, whose real server goes down then.
fn ready(shape: Shape, count: u16) -> Xdp {
    let mut xdp = load(SMALL);
    apply(&mut xdp, services(Up));
    resolve(&mut xdp, 1, INGRESS);
    for port in PORT..PORT + count {
        for flags in ["S", "A"] {
            let row = Row { flags, ..ROWS[0] };
            let segment = shape.segment(&row, port, false);
            assert_eq!(xdp.run(&segment, 0).unwrap().0, TX);
        }
    }
    apply(&mut xdp, services(Resetting));
    xdp
}

#[test]
fn segments_are_answered_with_resets() {
    in_namespace(|_| {
        for shape in [Shape::V4, Shape::V4Options, Shape::V6, Shape::Vlan] {
            let mut xdp = ready(shape, ROWS.len() as u16);
            let mut answered = 0;
            for (port, row) in (PORT..).zip(&ROWS) {
                for options in [false, true] {
                    let what = format!("{shape:?} {row:?} {options}");
                    let segment = shape.segment(row, port, options);
                    let (verdict, mut out) = xdp.run(&segment, 0).unwrap();
                    let expected = shape.answer(row, port);
                    answered += 1;
                    let seen = (verdict, passed(&mut xdp, "reset"));
                    assert_eq!(seen, (TX, answered), "{what}");
                    // Ethernet's shortest frame is longer; what lies behind the packet is nobody's.
                    let length = expected.len().max(60).min(segment.len());
                    assert_eq!(out.len(), length, "{what}");
                    out.truncate(expected.len());
                    assert_eq!(out, expected, "{what}");
                }
            }
        }
    });
}

#[test]
fn what_is_not_reset() {
    in_namespace(|_| {
        // A RST is never answered, and nobody is sent it.
        let mut xdp = ready(Shape::V4, 1);
        let reset = tcp(PORT, 80, "R");
        let (verdict, out) = xdp.run(&reset, 0).unwrap();
        assert_eq!((verdict, out), (PASS, reset));
        // A later piece of a segment whose first piece was seen before.
        let mut first = Shape::V4.segment(&ROWS[1], PORT, false);
        first[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
        mend(&mut first);
        let mut later = first.clone();
        later[20..22].copy_from_slice(&0x0001_u16.to_be_bytes());
        mend(&mut later);
        assert_eq!(xdp.run(&first, 0).unwrap().0, TX);
        assert_eq!(xdp.run(&later, 0).unwrap(), (PASS, later));
        assert_eq!(passed(&mut xdp, "reset"), 1);
    });
}

fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let header = Ipv4Header::from_slice(&frame[14..34]).unwrap().0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// A new connection from the same port goes to another real server; so does everything once the server is
/// merely down. What nobody has a flow of is nobody's.
#[test]
fn new_connections_go_elsewhere() {
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        let with = |state| vec![service(Tcp, 80, 1, &[(1, 1, state), (2, 1, Down)])];
        apply(&mut xdp, with(Up));
        for last in [1, 2] {
            resolve(&mut xdp, last, INGRESS);
        }
        for flags in ["S", "A"] {
            assert_eq!(server_of(&mut xdp, &tcp(PORT, 80, flags)), 1);
        }
        // Half-open.
        assert_eq!(server_of(&mut xdp, &tcp(PORT + 1, 80, "S")), 1);
        apply(
            &mut xdp,
            vec![service(Tcp, 80, 1, &[(1, 1, Resetting), (2, 1, Up)])],
        );
        assert_eq!(xdp.run(&tcp(PORT + 1, 80, "A"), 0).unwrap().0, TX);
        assert_eq!(xdp.run(&tcp(PORT, 80, "A"), 0).unwrap().0, TX);
        assert_eq!(passed(&mut xdp, "reset"), 2);
        for port in [PORT, PORT + 1, PORT + 2] {
            for flags in ["S", "A"] {
                assert_eq!(
                    server_of(&mut xdp, &tcp(port, 80, flags)),
                    2,
                    "{port} {flags}"
                );
            }
        }
        assert_eq!(passed(&mut xdp, "reset"), 2);
    });
}
