//! The data plane once more, on the host and for clarity: what must become of a frame. It shares no
//! code with the XDP program, keeps flows in a map, and knows no time.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::program::{DIRECTOR_MAC, OWN_VLANS, PASS, TX, server_mac};

/// What must become of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// Left alone, for this reason.
    Pass(&'static str),
    /// Sent to the real server of this number, changed so.
    Send(u8, Vec<u8>),
    /// Sent to any of these real servers: the choice depends on a secret.
    SendToAny(Vec<u8>),
}

impl Fate {
    /// The XDP action.
    pub fn verdict(&self) -> u32 {
        match self {
            Fate::Pass(_) => PASS,
            Fate::Send(..) | Fate::SendToAny(_) => TX,
        }
    }
}

/// A service as the model knows it.
pub struct Service {
    pub protocol: u8,
    pub vip: IpAddr,
    pub first: u16,
    pub last: u16,
    pub serving: bool,
    /// Numbers of real servers in the order of the ring.
    pub ring: Vec<u8>,
    pub next: usize,
}

/// The real server of a datagram whose first piece went where only the program knows.
const UNKNOWN: u8 = 0;

struct Flow {
    server: u8,
    promoted: bool,
    closing: bool,
}

type FlowKey = (usize, IpAddr, u16, u16);
type FragmentKey = (IpAddr, IpAddr, u32, u8);

/// All services and flows.
#[derive(Default)]
pub struct Model {
    pub services: Vec<Service>,
    /// VLAN of each real server; 0 is none.
    pub vlans: HashMap<u8, u16>,
    flows: HashMap<FlowKey, Flow>,
    fragments: HashMap<FragmentKey, (usize, u8)>,
    /// The flow of the last frame, if only one packet of it had been seen before.
    unproven: Option<FlowKey>,
}

/// A frame's headers.
struct Headers {
    tags: Vec<u16>,
    network: usize,
    v4: bool,
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    protocol: u8,
    transport: usize,
    /// Where the packet ends, whatever the frame is padded with.
    end: usize,
    piece: Piece,
}

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Whole,
    First(u32),
    Later(u32),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Open,
    End,
    Data,
    Datagram,
}

impl Headers {
    /// The protocol, where pieces of different ones are different datagrams.
    fn joining(&self) -> u8 {
        if self.v4 { self.protocol } else { 0 }
    }
}

type Step<T> = Result<T, &'static str>;

fn be16(bytes: &[u8], at: usize) -> Step<u16> {
    let pair = bytes.get(at..at + 2).ok_or("truncated")?;
    Ok(u16::from_be_bytes([pair[0], pair[1]]))
}

fn need(bytes: &[u8], at: usize, length: usize) -> Step<&[u8]> {
    bytes.get(at..at + length).ok_or("truncated")
}

fn v4(bytes: &[u8]) -> IpAddr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
}

fn v6(bytes: &[u8]) -> IpAddr {
    Ipv6Addr::from(<[u8; 16]>::try_from(bytes).unwrap()).into()
}

impl Model {
    /// A flow of which one packet was seen may be forgotten for another one. Where that could have
    /// happened to the last frame's: what must have become of the frame then.
    pub fn decide_as_forgotten(&mut self, frame: &[u8]) -> Option<Fate> {
        let key = self.unproven.take()?;
        self.flows.remove(&key);
        Some(self.decide(frame))
    }

    /// What must become of `frame`.
    pub fn decide(&mut self, frame: &[u8]) -> Fate {
        self.unproven = None;
        match self.try_decide(frame) {
            Ok(fate) => fate,
            Err(reason) => Fate::Pass(reason),
        }
    }

    fn try_decide(&mut self, frame: &[u8]) -> Step<Fate> {
        let headers = headers(frame)?;
        let icmp = if headers.v4 { 1 } else { 58 };
        if let Piece::Later(id) = headers.piece {
            self.require_vip(headers.destination)?;
            let key = (headers.source, headers.destination, id, headers.joining());
            let (service, server) = *self.fragments.get(&key).ok_or("fragment_early")?;
            self.accept(frame, &headers, service)?;
            if server == UNKNOWN {
                return Ok(Fate::SendToAny(self.services[service].ring.clone()));
            }
            return Ok(self.send(frame, &headers, server));
        }
        if headers.protocol == icmp {
            let (service, server) = self.owner_of_quoted(frame, &headers)?;
            self.accept(frame, &headers, service)?;
            return Ok(self.send(frame, &headers, server));
        }
        let (port, vport, kind) =
            transport(&frame[..headers.end], headers.protocol, headers.transport)?;
        let service = self.find(headers.protocol, headers.destination, vport)?;
        self.accept(frame, &headers, service)?;
        let key = self.key(service, headers.source, port, vport);
        let known = self.flows.get(&key);
        let reopened = known.is_some_and(|flow| kind == Kind::Open && flow.closing);
        let server = match known {
            Some(flow) if !reopened => flow.server,
            _ => {
                if is_martian(headers.source) {
                    return Err("martian_source");
                }
                if self.is_vip(headers.source) {
                    let land = headers.source == headers.destination;
                    return Err(if land { "land" } else { "source_is_vip" });
                }
                if kind == Kind::End && known.is_none() {
                    self.remember_piece(&headers, service, UNKNOWN);
                    return Ok(Fate::SendToAny(self.services[service].ring.clone()));
                }
                let chosen = &mut self.services[service];
                let server = chosen.ring[chosen.next % chosen.ring.len()];
                chosen.next += 1;
                let promoted = known.is_some_and(|flow| flow.promoted);
                let fresh = Flow {
                    server,
                    promoted,
                    closing: false,
                };
                self.flows.insert(key, fresh);
                self.remember_piece(&headers, service, server);
                return Ok(self.send(frame, &headers, server));
            }
        };
        if let Some(flow) = self.flows.get_mut(&key) {
            self.unproven = (!flow.promoted).then_some(key);
            flow.promoted |= kind != Kind::Open;
            flow.closing |= kind == Kind::End;
        }
        self.remember_piece(&headers, service, server);
        Ok(self.send(frame, &headers, server))
    }

    fn key(&self, service: usize, client: IpAddr, port: u16, vport: u16) -> FlowKey {
        let chosen = &self.services[service];
        let vport = if chosen.first == chosen.last {
            0
        } else {
            vport
        };
        (service, client, port, vport)
    }

    fn remember_piece(&mut self, headers: &Headers, service: usize, server: u8) {
        if let Piece::First(id) = headers.piece {
            let key = (headers.source, headers.destination, id, headers.joining());
            self.fragments.insert(key, (service, server));
        }
    }

    fn is_vip(&self, address: IpAddr) -> bool {
        self.services.iter().any(|service| service.vip == address)
    }

    fn require_vip(&self, address: IpAddr) -> Step<()> {
        self.is_vip(address).then_some(()).ok_or("not_a_service")
    }

    /// One port before a range before all.
    fn find(&self, protocol: u8, vip: IpAddr, port: u16) -> Step<usize> {
        let fits = |s: &&(usize, &Service)| {
            s.1.protocol == protocol && s.1.vip == vip && (s.1.first..=s.1.last).contains(&port)
        };
        let all: Vec<(usize, &Service)> = self.services.iter().enumerate().collect();
        let best = all
            .iter()
            .filter(fits)
            .min_by_key(|(_, s)| s.last - s.first);
        best.map(|(index, _)| *index).ok_or("not_a_service")
    }

    fn accept(&self, frame: &[u8], headers: &Headers, service: usize) -> Step<()> {
        if !self.services[service].serving {
            return Err("not_master");
        }
        if frame[..6] != DIRECTOR_MAC {
            return Err(if frame[0] & 1 != 0 {
                "not_unicast"
            } else {
                "foreign_mac"
            });
        }
        if !is_own_vlan(&headers.tags) {
            return Err("foreign_vlan");
        }
        if headers.ttl <= 1 {
            return Err("ttl_expired");
        }
        Ok(())
    }

    fn owner_of_quoted(&self, frame: &[u8], headers: &Headers) -> Step<(usize, u8)> {
        self.require_vip(headers.destination)?;
        let at = headers.transport;
        let kind = need(frame, at, 8)?[0];
        let errors: &[u8] = if headers.v4 {
            &[3, 11, 12]
        } else {
            &[1, 2, 3, 4]
        };
        if !errors.contains(&kind) {
            return Err("not_transport");
        }
        let inner = at + 8;
        let (vip, client, protocol, ports) = if headers.v4 {
            let ip = need(frame, inner, 20)?;
            let length = usize::from(ip[0] & 15) * 4;
            let later = be16(frame, inner + 6)? & 0x1fff != 0;
            if ip[0] >> 4 != 4 || length < 20 || later {
                return Err("icmp_unmatched");
            }
            (v4(&ip[12..]), v4(&ip[16..]), ip[9], inner + length)
        } else {
            let ip = need(frame, inner, 40)?;
            if ip[0] >> 4 != 6 {
                return Err("icmp_unmatched");
            }
            let (protocol, offset, piece) = walk(frame, ip[6], inner + 40)?;
            if matches!(piece, Piece::Later(_)) {
                return Err("icmp_unmatched");
            }
            (v6(&ip[8..24]), v6(&ip[24..40]), protocol, offset)
        };
        need(frame, ports, 4)?;
        let (vport, port) = (be16(frame, ports)?, be16(frame, ports + 2)?);
        if vip != headers.destination {
            return Err("icmp_unmatched");
        }
        let service = self
            .find(protocol, vip, vport)
            .map_err(|_| "icmp_unmatched")?;
        let flow = self.flows.get(&self.key(service, client, port, vport));
        Ok((service, flow.ok_or("icmp_unmatched")?.server))
    }

    /// Direct return to a real server.
    fn send(&self, frame: &[u8], headers: &Headers, server: u8) -> Fate {
        Fate::Send(server, self.rewritten(frame, headers, server))
    }

    /// The frame as it must be for one of the real servers.
    pub fn for_server(&self, frame: &[u8], server: u8) -> Option<Vec<u8>> {
        Some(self.rewritten(frame, &headers(frame).ok()?, server))
    }

    fn rewritten(&self, frame: &[u8], headers: &Headers, server: u8) -> Vec<u8> {
        let mut packet = frame[headers.network..].to_vec();
        if headers.v4 {
            packet[8] -= 1;
            // RFC 1624: HC' = ~(~HC + ~m + m'), in ones' complement.
            let old = u32::from(!u16::from_be_bytes([packet[10], packet[11]]));
            let word = |ttl: u8| u32::from(u16::from_be_bytes([ttl, packet[9]]));
            let sum = old + u32::from(!(word(packet[8] + 1) as u16)) + word(packet[8]);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        } else {
            packet[7] -= 1;
        }
        let mut out = server_mac(server).to_vec();
        out.extend(DIRECTOR_MAC);
        let vlan = self.vlans.get(&server).copied().unwrap_or(0);
        let ids: Vec<u16> = headers.tags.iter().map(|tag| tag & 0xfff).collect();
        let outer = ids.first().copied().unwrap_or(0);
        let inner = ids.get(1).copied().unwrap_or(0);
        if outer == vlan && inner == 0 {
            // The tags stay as they are, those of VLAN 0 too.
            out.extend(&frame[12..headers.network]);
        } else {
            let priority = headers.tags.first().copied().unwrap_or(0) & 0xf000;
            if vlan != 0 {
                out.extend([0x81, 0]);
                out.extend((priority | vlan).to_be_bytes());
            }
            out.extend(if headers.v4 { [8, 0] } else { [0x86, 0xdd] });
        }
        out.extend(packet);
        out
    }
}

/// A tag of VLAN 0 is none.
fn is_own_vlan(tags: &[u16]) -> bool {
    let ids: Vec<u16> = tags.iter().map(|tag| tag & 0xfff).collect();
    match ids.as_slice() {
        [] | [0] | [0, 0] => true,
        [one] | [0, one] => OWN_VLANS.contains(&[*one, 0]),
        [outer, inner, ..] => OWN_VLANS.contains(&[*outer, *inner]),
    }
}

fn is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(a) => {
            a.octets()[0] == 0 || a.is_loopback() || a.is_multicast() || a.is_broadcast()
        }
        IpAddr::V6(a) => match a.to_ipv4_mapped() {
            Some(mapped) => is_martian(mapped.into()),
            None => a.is_unspecified() || a.is_loopback() || a.is_multicast(),
        },
    }
}

fn headers(frame: &[u8]) -> Step<Headers> {
    let mut network = 14;
    let mut tags = Vec::new();
    let mut kind = be16(frame, 12)?;
    while (kind == 0x8100 || kind == 0x88a8) && tags.len() < 2 {
        tags.push(be16(frame, network)?);
        kind = be16(frame, network + 2)?;
        network += 4;
    }
    match kind {
        0x0800 => {
            let ip = need(frame, network, 20)?;
            let length = usize::from(ip[0] & 15) * 4;
            let total = usize::from(be16(frame, network + 2)?);
            if ip[0] >> 4 != 4 || length < 20 || total < length || frame.len() < network + total {
                return Err("truncated");
            }
            let bits = be16(frame, network + 6)?;
            let id = u32::from(be16(frame, network + 4)?);
            Ok(Headers {
                tags,
                network,
                v4: true,
                source: v4(&ip[12..]),
                destination: v4(&ip[16..]),
                ttl: ip[8],
                protocol: ip[9],
                transport: network + length,
                end: network + total,
                piece: match (bits & 0x1fff, bits & 0x2000) {
                    (0, 0) => Piece::Whole,
                    (0, _) => Piece::First(id),
                    _ => Piece::Later(id),
                },
            })
        }
        0x86dd => {
            let ip = need(frame, network, 40)?;
            let payload = usize::from(be16(frame, network + 4)?);
            if ip[0] >> 4 != 6 || frame.len() < network + 40 + payload {
                return Err("truncated");
            }
            let (protocol, transport, piece) = walk(frame, ip[6], network + 40)?;
            Ok(Headers {
                tags,
                network,
                v4: false,
                source: v6(&ip[8..24]),
                destination: v6(&ip[24..40]),
                ttl: ip[7],
                protocol,
                transport,
                end: network + 40 + payload,
                piece,
            })
        }
        _ => Err("not_ip"),
    }
}

/// At most seven extension headers.
fn walk(frame: &[u8], mut next: u8, mut at: usize) -> Step<(u8, usize, Piece)> {
    let mut piece = Piece::Whole;
    for _ in 0..8 {
        let length = match next {
            0 | 43 | 60 | 135 => (usize::from(need(frame, at, 2)?[1]) + 1) * 8,
            51 => (usize::from(need(frame, at, 2)?[1]) + 2) * 4,
            44 => 8,
            _ => return Ok((next, at, piece)),
        };
        let header = need(frame, at, if next == 44 { 8 } else { 2 })?;
        let fragment = next == 44;
        next = header[0];
        if fragment {
            let bits = be16(frame, at + 2)?;
            let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            if bits & 0xfff8 != 0 {
                return Ok((next, at + 8, Piece::Later(id)));
            }
            if bits & 1 != 0 {
                piece = Piece::First(id);
            }
        }
        at += length;
    }
    Err("extension_headers")
}

fn transport(frame: &[u8], protocol: u8, at: usize) -> Step<(u16, u16, Kind)> {
    let (length, kind): (usize, fn(&[u8]) -> Kind) = match protocol {
        6 => (20, |tcp| match tcp[13] {
            flags if flags & 5 != 0 => Kind::End,
            flags if flags & 0x12 == 2 => Kind::Open,
            _ => Kind::Data,
        }),
        17 => (8, |_| Kind::Datagram),
        132 => (16, |sctp| match sctp[12] {
            1 => Kind::Open,
            6 | 7 | 8 | 14 => Kind::End,
            _ => Kind::Data,
        }),
        _ => return Err("not_transport"),
    };
    let header = need(frame, at, length)?;
    Ok((be16(header, 0)?, be16(header, 2)?, kind(header)))
}
