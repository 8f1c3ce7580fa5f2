//! IPVS's connection synchronisation, version 1, as the kernel's sync daemons speak it by UDP to
//! 224.0.0.81, port 8848 (net/netfilter/ipvs/ip_vs_sync.c). Numbers are in network order. Pure.
//!
//! ```text
//!  0                   1                   2                   3
//! +---------------+---------------+-------------------------------+
//! |   reserved    |    sync id    |             size              |
//! +---------------+---------------+-------------------------------+
//! |  connections  |  version (1)  |            spare              |
//! +---------------+---------------+-------------------------------+
//! | type, IPv6: 1 |   protocol    |  version (4 bits) and size    |  each connection,
//! |                             flags                             |  at a multiple of 4
//! |             state             |          client port          |
//! |          virtual port         |          server port          |
//! |                         firewall mark                         |
//! |                       time-out (seconds)                      |
//! |        client, virtual and server address, 4 or 16 bytes      |
//! |        options: type, length, value                           |
//! +---------------------------------------------------------------+
//! ```

use std::{
    iter,
    net::{IpAddr, SocketAddr},
};

use thiserror::Error;

/// Bytes of a message before its connections.
const HEADER: usize = 8;
/// SYNC_PROTO_VER.
const VERSION: u8 = 1;
/// A connection's type: STYPE_F_INET6.
const IS_V6: u8 = 1;
/// Lower bits of its version and size: the size (SVER_MASK).
const SIZE: u16 = 0x0fff;
/// Where options can be skipped by those who do not know them (IPVS_OPT_F_PARAM).
const OPTIONAL: u8 = 0x40;
/// Option types: IPVS_OPT_SEQ_DATA, IPVS_OPT_PE_DATA, IPVS_OPT_PE_NAME.
const SEQUENCES: u8 = 1;
const ENGINE_DATA: u8 = 2;
const ENGINE_NAME: u8 = 3;
/// Bytes of the option of sequence numbers: six words.
const SEQUENCES_SIZE: usize = 24;
/// Longest name of a persistence engine, and longest data of one (IP_VS_PENAME_MAXLEN less the zero,
/// IP_VS_PEDATA_MAXLEN less an option's header).
const LONGEST_NAME: usize = 15;
const LONGEST_DATA: usize = 255;

/// Flags of connections that are told (IP_VS_CONN_F_*). The lowest three bits are the way to the
/// real server.
pub mod flags {
    /// Of the lowest bits: direct return.
    pub const ROUTE: u32 = 3;
    /// Of the lowest bits: a tunnel.
    pub const TUNNEL: u32 = 2;
    /// Not established.
    pub const INACTIVE: u32 = 0x0100;
    /// Answers do not come through here.
    pub const NO_OUTPUT: u32 = 0x0080;
    /// The client's port is not known yet.
    pub const NO_CLIENT_PORT: u32 = 0x0800;
    /// A client that sticks, rather than a connection.
    pub const TEMPLATE: u32 = 0x1000;
}

/// A message that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    /// Shorter than it says.
    #[error("the message is cut off")]
    Truncated,
    /// Of another version, or no such message at all.
    #[error("the message is of another version")]
    Version,
    /// The length in the header is not that of the message.
    #[error("the message has {found} bytes and says {said}")]
    Length {
        /// What its header says.
        said: usize,
        /// What there is.
        found: usize,
    },
    /// An option that must be understood and is not.
    #[error("option {0} is not known")]
    Option(u8),
    /// An option of a wrong size.
    #[error("option {0} has a wrong size")]
    OptionSize(u8),
    /// Behind the last connection there is more.
    #[error("something follows the last connection")]
    Trailing,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who listens: those of the same id, and those of id 0.
    pub sync_id: u8,
    /// At most 255.
    pub connections: Vec<Connection>,
}

/// A connection, or a client that sticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// See [`flags`].
    pub flags: u32,
    /// The kernel's number of its state, which depends on the protocol.
    pub state: u16,
    /// Addresses of one version of IP.
    pub client: SocketAddr,
    /// The VIP.
    pub vip: SocketAddr,
    /// The real server.
    pub server: SocketAddr,
    /// Mark of a service by firewall mark, or 0.
    pub mark: u32,
    /// Seconds of silence that it may last.
    pub timeout_s: u32,
    /// How sequence numbers are shifted, where an application helper changes lengths.
    pub sequences: Option<[Sequence; 2]>,
    /// Name of a persistence engine.
    pub engine: Option<String>,
    /// Its data, such as the number of a SIP call.
    pub engine_data: Option<Vec<u8>>,
}

/// Shift of the sequence numbers of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// From here on.
    pub first: u32,
    /// By so many.
    pub delta: u32,
    /// And before by so many.
    pub previous_delta: u32,
}

impl Connection {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let kind = if self.vip.is_ipv6() { IS_V6 } else { 0 };
        // The size is known at the end.
        out.extend([kind, self.protocol, 0, 0]);
        out.extend(self.flags.to_be_bytes());
        out.extend(self.state.to_be_bytes());
        let ends = [self.client, self.vip, self.server];
        for end in ends {
            out.extend(end.port().to_be_bytes());
        }
        out.extend(self.mark.to_be_bytes());
        out.extend(self.timeout_s.to_be_bytes());
        for end in ends {
            match end.ip() {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
        if let Some(sequences) = self.sequences {
            out.extend([SEQUENCES, SEQUENCES_SIZE as u8]);
            for sequence in sequences {
                for word in [sequence.first, sequence.delta, sequence.previous_delta] {
                    out.extend(word.to_be_bytes());
                }
            }
        }
        // What the kernel does not take is cut.
        if let Some(data) = &self.engine_data {
            option(out, ENGINE_DATA | OPTIONAL, data, LONGEST_DATA);
        }
        if let Some(name) = &self.engine {
            option(out, ENGINE_NAME | OPTIONAL, name.as_bytes(), LONGEST_NAME);
        }
        let size = u16::try_from(out.len() - start).unwrap_or(SIZE) & SIZE;
        out[start + 2..start + 4].copy_from_slice(&size.to_be_bytes());
        // Padding is not part of it.
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn decode(bytes: &[u8]) -> Result<Self, SyncError> {
        let mut rest = Reader(bytes);
        let v6 = rest.u8()? & IS_V6 != 0;
        let protocol = rest.u8()?;
        let _version_and_size = rest.u16()?;
        let flags = rest.u32()?;
        let state = rest.u16()?;
        let ports = [rest.u16()?, rest.u16()?, rest.u16()?];
        let (mark, timeout_s) = (rest.u32()?, rest.u32()?);
        let mut end = |port| {
            let address = match v6 {
                true => IpAddr::from(rest.array::<16>()?),
                false => IpAddr::from(rest.array::<4>()?),
            };
            Ok(SocketAddr::new(address, port))
        };
        let mut read = Self {
            protocol,
            flags,
            state,
            client: end(ports[0])?,
            vip: end(ports[1])?,
            server: end(ports[2])?,
            mark,
            timeout_s,
            sequences: None,
            engine: None,
            engine_data: None,
        };
        while !rest.0.is_empty() {
            let (kind, length) = (rest.u8()?, rest.u8()?);
            let value = rest.take(usize::from(length))?;
            if value.is_empty() {
                return Err(SyncError::OptionSize(kind));
            }
            match kind & !OPTIONAL {
                SEQUENCES => read.sequences = Some(sequences(kind, value)?),
                ENGINE_DATA => read.engine_data = Some(value.to_vec()),
                ENGINE_NAME if value.len() <= LONGEST_NAME => {
                    read.engine = Some(String::from_utf8_lossy(value).into_owned());
                }
                ENGINE_NAME => return Err(SyncError::OptionSize(kind)),
                _ if kind & OPTIONAL != 0 => {}
                _ => return Err(SyncError::Option(kind)),
            }
        }
        Ok(read)
    }
}

fn option(out: &mut Vec<u8>, kind: u8, value: &[u8], longest: usize) {
    let value = &value[..value.len().min(longest)];
    if !value.is_empty() {
        out.extend([kind, value.len() as u8]);
        out.extend(value);
    }
}

fn sequences(kind: u8, value: &[u8]) -> Result<[Sequence; 2], SyncError> {
    if value.len() != SEQUENCES_SIZE {
        return Err(SyncError::OptionSize(kind));
    }
    let mut words = Reader(value);
    let mut one = || {
        Ok(Sequence {
            first: words.u32()?,
            delta: words.u32()?,
            previous_delta: words.u32()?,
        })
    };
    Ok([one()?, one()?])
}

impl Message {
    /// The bytes of a message.
    pub fn encode(&self) -> Vec<u8> {
        Self::fill(self.sync_id, &self.connections, usize::MAX).0
    }

    /// As many messages as `connections` need if none may be longer than `limit` bytes, each made when it is asked for.
    pub fn encode_all(
        sync_id: u8,
        connections: &[Connection],
        limit: usize,
    ) -> impl Iterator<Item = Vec<u8>> {
        let mut rest = connections;
        iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (message, count) = Self::fill(sync_id, rest, limit);
            rest = &rest[count..];
            Some(message)
        })
    }

    /// A message with the first of these connections, as many as it may hold, but at least one; and how many.
    fn fill(sync_id: u8, connections: &[Connection], limit: usize) -> (Vec<u8>, usize) {
        let mut out = vec![0; HEADER];
        let mut count = 0_u8;
        for connection in &connections[..connections.len().min(usize::from(u8::MAX))] {
            let before = out.len();
            connection.encode(&mut out);
            if out.len() > limit && count > 0 {
                out.truncate(before);
                break;
            }
            count += 1;
        }
        let size = u16::try_from(out.len()).unwrap_or(u16::MAX);
        let [high, low] = size.to_be_bytes();
        out[..HEADER].copy_from_slice(&[0, sync_id, high, low, count, VERSION, 0, 0]);
        (out, usize::from(count))
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, SyncError> {
        let mut rest = Reader(bytes);
        let (reserved, sync_id, said) = (rest.u8()?, rest.u8()?, usize::from(rest.u16()?));
        let (count, version, spare) = (rest.u8()?, rest.u8()?, rest.u16()?);
        if (reserved, version, spare) != (0, VERSION, 0) {
            return Err(SyncError::Version);
        }
        let found = bytes.len();
        if said != found {
            return Err(SyncError::Length { said, found });
        }
        let mut connections = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let word = rest.0.get(2..4).ok_or(SyncError::Truncated)?;
            let word = u16::from_be_bytes([word[0], word[1]]);
            if word & !SIZE != 0 {
                return Err(SyncError::Version);
            }
            let size = usize::from(word & SIZE);
            let connection = rest.take(size)?;
            connections.push(Connection::decode(connection)?);
            let padding = size.next_multiple_of(4) - size;
            rest.take(padding)?;
        }
        match rest.0.is_empty() {
            true => Ok(Self {
                sync_id,
                connections,
            }),
            false => Err(SyncError::Trailing),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SyncError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(SyncError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SyncError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SyncError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, SyncError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, SyncError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, SyncError> {
        self.array().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = include_str!("sync/recorded.txt");

    fn recorded() -> Vec<Vec<u8>> {
        let lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
        let bytes = |line: &str| {
            let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
            (0..line.len()).step_by(2).map(byte).collect()
        };
        lines.map(bytes).collect()
    }

    #[test]
    fn the_kernels_messages_come_back_byte_for_byte() {
        let list = recorded();
        assert_eq!(list.len(), 5);
        let counts: Vec<usize> = list
            .iter()
            .map(|bytes| {
                let message = Message::decode(bytes).unwrap();
                assert_eq!(message.sync_id, 7);
                assert_eq!(message.encode(), *bytes);
                message.connections.len()
            })
            .collect();
        assert_eq!(counts, [3, 5, 5, 7, 2]);
    }

    #[test]
    fn what_the_kernel_says() {
        let at = |message: usize, index: usize| {
            let read = Message::decode(&recorded()[message]).unwrap();
            read.connections[index].clone()
        };
        let ip = |text: &str| text.parse::<SocketAddr>().unwrap();
        let tcp = at(0, 0);
        assert_eq!(
            (tcp.protocol, tcp.flags, tcp.state, tcp.timeout_s),
            (6, 0, 1, 900)
        );
        assert_eq!(tcp.client, ip("10.9.0.2:42562"));
        assert_eq!(
            (tcp.vip, tcp.server),
            (ip("10.9.0.1:80"), ip("10.8.0.2:80"))
        );
        let six = at(3, 0);
        assert_eq!(six.server, ip("[2001:db8:8::2]:80"));
        assert_eq!(six.flags, flags::INACTIVE);
        let bond = at(4, 0);
        let expected = flags::TEMPLATE | flags::INACTIVE | flags::NO_OUTPUT | flags::ROUTE;
        assert_eq!((bond.flags, bond.timeout_s), (expected, 60));
        assert_eq!(bond.client, ip("10.9.0.2:0"));
    }

    fn end(v6: bool) -> BoxedStrategy<SocketAddr> {
        match v6 {
            true => (any::<[u8; 16]>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(ip.into(), port))
                .boxed(),
            false => (any::<[u8; 4]>(), any::<u16>())
                .prop_map(|(ip, port)| SocketAddr::new(ip.into(), port))
                .boxed(),
        }
    }

    fn connection() -> impl Strategy<Value = Connection> {
        let sequence = || {
            any::<[u32; 3]>().prop_map(|[first, delta, previous_delta]| Sequence {
                first,
                delta,
                previous_delta,
            })
        };
        let ends = any::<bool>().prop_flat_map(|v6| (end(v6), end(v6), end(v6)));
        let numbers = any::<(u8, u32, u16, u32, u32)>();
        let options = (
            prop::option::of([sequence(), sequence()]),
            prop::option::of("[a-z]{1,15}"),
            prop::option::of(prop::collection::vec(any::<u8>(), 1..=255)),
        );
        (ends, numbers, options).prop_map(
            |(
                (client, vip, server),
                (protocol, flags, state, mark, timeout_s),
                (sequences, engine, engine_data),
            )| Connection {
                protocol,
                flags,
                state,
                client,
                vip,
                server,
                mark,
                timeout_s,
                sequences,
                engine,
                engine_data,
            },
        )
    }

    proptest! {
        #[test]
        fn connections_come_back(sync_id: u8, connections in prop::collection::vec(connection(), 0..20)) {
            let messages = Message::encode_all(sync_id, &connections, 1_400);
            let mut read = Vec::new();
            for bytes in messages {
                prop_assert!(bytes.len() <= 1_400 && bytes.len() % 4 == 0);
                let message = Message::decode(&bytes).unwrap();
                prop_assert_eq!(message.sync_id, sync_id);
                read.extend(message.connections);
            }
            prop_assert_eq!(read, connections);
        }

        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes);
        }

        /// Real messages with some bytes changed, and cut off.
        #[test]
        fn damaged_messages_can_be_read(
            which: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            end: prop::sample::Index,
        ) {
            let list = recorded();
            let mut bytes = which.get(&list).clone();
            prop_assert!(Message::decode(&bytes[..end.index(bytes.len())]).is_err());
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn what_is_not_understood() {
        let good = &recorded()[0];
        let with = |place: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[place] = value;
            Message::decode(&bytes)
        };
        assert_eq!(with(5, 0), Err(SyncError::Version));
        assert_eq!(with(4, 2), Err(SyncError::Trailing));
        assert_eq!(with(4, 4), Err(SyncError::Truncated));
        // A connection of another version, and one that is longer than the message.
        assert_eq!(with(10, 0x10), Err(SyncError::Version));
        assert_eq!(with(10, 0x0f), Err(SyncError::Truncated));
        let said = good.len() + 4;
        assert!(matches!(
            Message::decode(&[&good[..], &[0; 4]].concat()),
            Err(SyncError::Length { found, .. }) if found == said
        ));
        let option = |kind: u8| {
            let mut message = Message::decode(good).unwrap();
            message.connections.truncate(1);
            let mut bytes = message.encode();
            bytes.extend([kind, 2, 7, 7]);
            let length = bytes.len() as u8;
            bytes[3] = length;
            bytes[11] += 4;
            Message::decode(&bytes).map(|message| message.connections.len())
        };
        assert_eq!(option(9), Err(SyncError::Option(9)));
        assert_eq!(option(9 | OPTIONAL), Ok(1));
        assert_eq!(option(SEQUENCES), Err(SyncError::OptionSize(SEQUENCES)));
    }
}
