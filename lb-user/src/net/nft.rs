//! Requests to nf_tables, as bytes: a table of ours with one chain on the way to the host's own
//! sockets. Pure.
//!
//! Numbers are those of the kernel's `nfnetlink.h` and `nf_tables.h`; what they hold is big-endian,
//! the netlink framing is not.

use std::{net::IpAddr, ops::RangeInclusive};

/// The table's name in `nft list ruleset`.
pub const TABLE: &str = "lbd";
const CHAIN: &str = "not_accepted";
const GUARD: &str = "guarded";

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = NEW_TABLE | 2;
const NEW_CHAIN: u16 = NEW_TABLE | 3;
const NEW_RULE: u16 = NEW_TABLE | 6;
const DELETE_RULE: u16 = NEW_TABLE | 8;
const REQUEST: u16 = 0x1;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
/// The table goes with the socket that made it, and nobody else may change it.
const OWNED: u32 = 2;
const HOOK_LOCAL_IN: u32 = 1;
/// IPVS takes what is its at 98 and 99 (NF_IP_PRI_NAT_SRC - 2 of ip_vs_core.c).
const BEFORE_IPVS: u32 = 50;
const BEHIND_IPVS: u32 = 200;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;
const REGISTER: u32 = 1;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const ICMPV6: u8 = 58;
/// Neighbour solicitations and advertisements (RFC 4861).
const DISCOVERY: RangeInclusive<u8> = 135..=136;

/// An address whose packets the host does not take, except those to some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The address.
    pub address: IpAddr,
    /// Protocol and ports that it takes all the same.
    pub open: Vec<(u8, RangeInclusive<u16>)>,
}

/// A service whose packets neither IPVS nor the host's own sockets get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Its VIP.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Its ports.
    pub ports: RangeInclusive<u16>,
}

/// Marks whose packets are for IPVS and nobody else: those with these bits under this mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForIpvs {
    /// The bits.
    pub mark: u32,
    /// Which bits count.
    pub mask: u32,
}

/// One batch that makes the table hold exactly this; with nothing to hold there is no table. Takes effect
/// as a whole.
pub fn replace(closed: &[Closed], guarded: &[Guarded], for_ipvs: Option<ForIpvs>) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
    let table = |message: &mut Vec<u8>| {
        string(message, 1, TABLE);
        word(message, 2, OWNED);
    };
    // What is not there cannot be removed.
    batch.message(NEW_TABLE, CREATE, NFPROTO_INET, 0, table);
    batch.message(DELETE_TABLE, 0, NFPROTO_INET, 0, |m| string(m, 1, TABLE));
    if !closed.is_empty() || !guarded.is_empty() || for_ipvs.is_some() {
        batch.message(NEW_TABLE, CREATE, NFPROTO_INET, 0, table);
        batch.message(NEW_CHAIN, CREATE, NFPROTO_INET, 0, |message| {
            chain(message, GUARD, BEFORE_IPVS);
        });
        batch.message(NEW_CHAIN, CREATE, NFPROTO_INET, 0, |message| {
            chain(message, CHAIN, BEHIND_IPVS);
        });
        if let Some(marked) = for_ipvs {
            batch.marked(GUARD, marked, ACCEPT);
            batch.marked(CHAIN, marked, DROP);
        }
        batch.rule(CHAIN, |rule| {
            meta_is(rule, META_NFPROTO, NFPROTO_IPV6);
            meta_is(rule, META_L4PROTO, ICMPV6);
            payload_in(
                rule,
                TRANSPORT_HEADER,
                0,
                &[*DISCOVERY.start()],
                &[*DISCOVERY.end()],
            );
            verdict(rule, ACCEPT);
        });
    }
    for Closed { address, open } in closed {
        for (protocol, ports) in open {
            batch.rule(CHAIN, |rule| {
                destination_is(rule, *address);
                port_in(rule, *protocol, ports);
                verdict(rule, ACCEPT);
            });
        }
        batch.rule(CHAIN, |rule| {
            destination_is(rule, *address);
            verdict(rule, DROP);
        });
    }
    for Guarded {
        address,
        protocol,
        ports,
    } in guarded
    {
        batch.rule(GUARD, |rule| {
            destination_is(rule, *address);
            port_in(rule, *protocol, ports);
            verdict(rule, DROP);
        });
    }
    batch.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
    batch.bytes
}

/// One batch that leaves nothing guarded in a table that has something to hold. Chains stay where they are: that is
/// done at once, while the kernel waits for its other processors when one goes.
pub fn unguard(for_ipvs: Option<ForIpvs>) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, |_| {});
    // All of the chain's.
    batch.message(DELETE_RULE, 0, NFPROTO_INET, 0, |message| {
        string(message, 1, TABLE);
        string(message, 2, GUARD);
    });
    if let Some(marked) = for_ipvs {
        batch.marked(GUARD, marked, ACCEPT);
    }
    batch.message(BATCH_END, 0, 0, SUBSYSTEM, |_| {});
    batch.bytes
}

/// Messages one behind the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        subsystem: u16,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.sequence += 1;
        // nlmsghdr, whose length is known at the end, and nfgenmsg.
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&subsystem.to_be_bytes());
        fill(&mut self.bytes);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// What to do with marked packets.
    fn marked(&mut self, chain: &str, marked: ForIpvs, code: u32) {
        self.rule(chain, |rule| {
            mark_is(rule, marked);
            verdict(rule, code);
        });
    }

    fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Vec<u8>)) {
        self.message(NEW_RULE, CREATE | APPEND, NFPROTO_INET, 0, |message| {
            string(message, 1, TABLE);
            string(message, 2, chain);
            nested(message, 4, expressions);
        });
    }
}

fn chain(message: &mut Vec<u8>, name: &str, priority: u32) {
    string(message, 1, TABLE);
    string(message, 3, name);
    nested(message, 4, |hook| {
        word(hook, 1, HOOK_LOCAL_IN);
        word(hook, 2, priority);
    });
    word(message, 5, ACCEPT);
    string(message, 7, "filter");
}

fn expression(rule: &mut Vec<u8>, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
    nested(rule, 1, |element| {
        string(element, 1, name);
        nested(element, 2, data);
    });
}

/// Goes on if a property of the packet has this value.
fn meta_is(rule: &mut Vec<u8>, key: u32, value: u8) {
    expression(rule, "meta", |data| {
        word(data, 1, REGISTER);
        word(data, 2, key);
    });
    equals(rule, &[value]);
}

/// Goes on if the packet has one of these marks. They are in the host's byte order.
fn mark_is(rule: &mut Vec<u8>, ForIpvs { mark, mask }: ForIpvs) {
    expression(rule, "meta", |data| {
        word(data, 1, REGISTER);
        word(data, 2, META_MARK);
    });
    expression(rule, "bitwise", |data| {
        word(data, 1, REGISTER);
        word(data, 2, REGISTER);
        word(data, 3, size_of::<u32>() as u32);
        nested(data, 4, |value| attribute(value, 1, &mask.to_ne_bytes()));
        nested(data, 5, |value| attribute(value, 1, &[0; 4]));
    });
    equals(rule, &mark.to_ne_bytes());
}

/// Goes on if the packet is for this address.
fn destination_is(rule: &mut Vec<u8>, address: IpAddr) {
    let (family, offset, bytes) = match address {
        IpAddr::V4(v4) => (NFPROTO_IPV4, 16, v4.octets().to_vec()),
        IpAddr::V6(v6) => (NFPROTO_IPV6, 24, v6.octets().to_vec()),
    };
    meta_is(rule, META_NFPROTO, family);
    load(rule, NETWORK_HEADER, offset, bytes.len());
    equals(rule, &bytes);
}

/// Goes on if the packet is for one of these ports.
fn port_in(rule: &mut Vec<u8>, protocol: u8, ports: &RangeInclusive<u16>) {
    meta_is(rule, META_L4PROTO, protocol);
    // TCP, UDP and SCTP have the destination port in the same place.
    let (first, last) = (ports.start().to_be_bytes(), ports.end().to_be_bytes());
    payload_in(rule, TRANSPORT_HEADER, 2, &first, &last);
}

/// Goes on if a part of a header lies between two values.
fn payload_in(rule: &mut Vec<u8>, base: u32, offset: u32, first: &[u8], last: &[u8]) {
    load(rule, base, offset, first.len());
    expression(rule, "range", |data| {
        word(data, 1, REGISTER);
        word(data, 2, 0);
        nested(data, 3, |value| attribute(value, 1, first));
        nested(data, 4, |value| attribute(value, 1, last));
    });
}

fn load(rule: &mut Vec<u8>, base: u32, offset: u32, length: usize) {
    expression(rule, "payload", |data| {
        word(data, 1, REGISTER);
        word(data, 2, base);
        word(data, 3, offset);
        word(data, 4, length as u32);
    });
}

fn equals(rule: &mut Vec<u8>, bytes: &[u8]) {
    expression(rule, "cmp", |data| {
        word(data, 1, REGISTER);
        word(data, 2, 0);
        nested(data, 3, |value| attribute(value, 1, bytes));
    });
}

fn verdict(rule: &mut Vec<u8>, code: u32) {
    expression(rule, "immediate", |data| {
        // The register of verdicts.
        word(data, 1, 0);
        nested(data, 2, |value| {
            nested(value, 2, |verdict| word(verdict, 1, code));
        });
    });
}

fn word(message: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(message, kind, &value.to_be_bytes());
}

fn string(message: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(message, kind, &[text.as_bytes(), &[0]].concat());
}

fn nested(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inside = Vec::new();
    fill(&mut inside);
    attribute(message, kind | NESTED, &inside);
}

/// Length, kind, value, and what is missing to a multiple of four.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are short: a rule has at most some hundred bytes.
    let length = (value.len() + 4) as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    let padding = value.len().wrapping_neg() % 4;
    message.extend_from_slice(&[0; 4][..padding]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds of the messages of a batch, whose lengths must fill it.
    fn kinds(batch: &[u8]) -> Vec<u16> {
        let mut kinds = Vec::new();
        let mut rest = batch;
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert!(length.is_multiple_of(4) && length >= 20, "{length}");
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            rest = &rest[length..];
        }
        kinds
    }

    #[test]
    fn a_batch_replaces_the_table_or_removes_it() {
        let none = [BATCH_BEGIN, NEW_TABLE, DELETE_TABLE, BATCH_END];
        assert_eq!(kinds(&replace(&[], &[], None)), none);
        let closed = Closed {
            address: IpAddr::from([10, 1, 15, 50]),
            open: vec![(6, 80..=80), (17, 1000..=1999)],
        };
        let made = kinds(&replace(&[closed], &[], None));
        let expected = [
            BATCH_BEGIN,
            NEW_TABLE,
            DELETE_TABLE,
            NEW_TABLE,
            NEW_CHAIN,
            NEW_CHAIN,
            NEW_RULE,
            NEW_RULE,
            NEW_RULE,
            NEW_RULE,
            BATCH_END,
        ];
        assert_eq!(made, expected);
        let guarded = Guarded {
            address: IpAddr::from([10, 1, 15, 50]),
            protocol: 6,
            ports: 80..=80,
        };
        assert_eq!(kinds(&replace(&[], &[guarded], None)).len(), 9);
        let marked = ForIpvs {
            mark: 0x6c73_0000,
            mask: 0xffff_0000,
        };
        assert_eq!(kinds(&replace(&[], &[], Some(marked))).len(), 10);
        let unguarded = [BATCH_BEGIN, DELETE_RULE, NEW_RULE, BATCH_END];
        assert_eq!(kinds(&unguard(Some(marked))), unguarded);
    }

    #[test]
    fn an_attribute_is_padded() {
        let mut bytes = Vec::new();
        string(&mut bytes, 7, "abcd");
        let (length, kind) = (9_u16.to_ne_bytes(), 7_u16.to_ne_bytes());
        let expected = [&length[..], &kind, b"abcd\0\0\0\0"].concat();
        assert_eq!(bytes, expected);
    }
}
