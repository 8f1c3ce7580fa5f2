//! IPVS over generic netlink: requests to bytes, and what the kernel says to values
//! (include/uapi/linux/ip_vs.h, genetlink.h, netlink.h). Pure.
//!
//! `codec/recorded.txt` has what the real ipvsadm and a kernel said to each other.

mod address;
mod daemon;
mod destination;
mod service;
mod stats;
#[cfg(test)]
mod tests;

pub use self::{
    daemon::{SyncDaemon, SyncState, Timeouts},
    destination::{Destination, DestinationEntry, Forward, Wrapping},
    service::{Key, Service, ServiceEntry, flags, whole},
    stats::Stats,
};
pub use crate::dataplane::genetlink::attribute::CodecError;
use crate::dataplane::genetlink::{
    CONTROL, ERROR, FAMILY_ID, GENERIC_HEADER, HEADER, REQUEST,
    attribute::{Writer, aligned, attributes},
    message,
};

/// The end of a dump (NLMSG_DONE).
const DONE: u16 = 3;
/// Message flags: with an answer; of everything there is.
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;

/// IPVS_CMD_ATTR_*.
mod top {
    pub const SERVICE: u16 = 1;
    pub const DESTINATION: u16 = 2;
    pub const DAEMON: u16 = 3;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

/// IPVS_INFO_ATTR_*.
mod info {
    pub const VERSION: u16 = 1;
    pub const TABLE_SIZE: u16 = 2;
}

/// Commands that answers come with (IPVS_CMD_*).
mod answer {
    pub const SERVICE: u8 = 1;
    pub const DESTINATION: u8 = 5;
    pub const DAEMON: u8 = 9;
    pub const TIMEOUTS: u8 = 12;
    pub const INFO: u8 = 14;
}

/// What the kernel is asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Add a service.
    NewService(Service),
    /// Change one.
    SetService(Service),
    /// Remove one with its real servers.
    DeleteService(Key),
    /// All services.
    Services,
    /// Add a real server.
    NewDestination(Key, Destination),
    /// Change one.
    SetDestination(Key, Destination),
    /// Remove one.
    DeleteDestination(Key, Destination),
    /// All real servers of a service.
    Destinations(Key),
    /// Start a sync daemon.
    NewDaemon(SyncDaemon),
    /// Stop it.
    DeleteDaemon(SyncState),
    /// All sync daemons.
    Daemons,
    /// Change the time-outs.
    SetTimeouts(Timeouts),
    /// The time-outs.
    Timeouts,
    /// Version and table size.
    Info,
    /// Set counters back, of one service or of all.
    Zero(Option<Key>),
    /// Remove every service, whosever it is.
    Flush,
}

impl Command {
    /// IPVS_CMD_*.
    const fn number(&self) -> u8 {
        match self {
            Command::NewService(_) => 1,
            Command::SetService(_) => 2,
            Command::DeleteService(_) => 3,
            Command::Services => 4,
            Command::NewDestination(..) => 5,
            Command::SetDestination(..) => 6,
            Command::DeleteDestination(..) => 7,
            Command::Destinations(_) => 8,
            Command::NewDaemon(_) => 9,
            Command::DeleteDaemon(_) => 10,
            Command::Daemons => 11,
            Command::SetTimeouts(_) => 12,
            Command::Timeouts => 13,
            Command::Info => 15,
            Command::Zero(_) => 16,
            Command::Flush => 17,
        }
    }

    /// The service that it changes, itself or its real servers.
    pub const fn changed_service(&self) -> Option<Key> {
        match self {
            Command::NewService(service) | Command::SetService(service) => Some(service.key),
            Command::DeleteService(key)
            | Command::NewDestination(key, _)
            | Command::SetDestination(key, _)
            | Command::DeleteDestination(key, _) => Some(*key),
            Command::Services
            | Command::Destinations(_)
            | Command::NewDaemon(_)
            | Command::DeleteDaemon(_)
            | Command::Daemons
            | Command::SetTimeouts(_)
            | Command::Timeouts
            | Command::Info
            | Command::Zero(_)
            | Command::Flush => None,
        }
    }

    /// Whether the answer ends with a message of its own.
    const fn is_dump(&self) -> bool {
        matches!(
            self,
            Command::Services | Command::Destinations(_) | Command::Daemons
        )
    }

    /// Whether the answer is the acknowledgement alone, or one that comes before it.
    pub const fn ends_with_answer(&self) -> bool {
        matches!(self, Command::Timeouts | Command::Info)
    }

    fn write(&self, out: &mut Writer) {
        let service = |out: &mut Writer, service: &Service| {
            out.nest(top::SERVICE, |inner| service.write(inner));
        };
        let bare = |out: &mut Writer, key: &Key| service(out, &Service::bare(*key));
        match self {
            Command::NewService(new) | Command::SetService(new) => service(out, new),
            Command::DeleteService(key) | Command::Destinations(key) | Command::Zero(Some(key)) => {
                bare(out, key);
            }
            Command::NewDestination(key, server)
            | Command::SetDestination(key, server)
            | Command::DeleteDestination(key, server) => {
                bare(out, key);
                out.nest(top::DESTINATION, |inner| server.write(inner));
            }
            Command::NewDaemon(daemon) => {
                out.nest(top::DAEMON, |inner| daemon.write(inner));
            }
            Command::DeleteDaemon(state) => {
                out.nest(top::DAEMON, |inner| SyncDaemon::bare(*state).write(inner));
            }
            Command::SetTimeouts(timeouts) => {
                out.put_u32(top::TIMEOUT_TCP, timeouts.tcp);
                out.put_u32(top::TIMEOUT_TCP_FIN, timeouts.tcp_fin);
                out.put_u32(top::TIMEOUT_UDP, timeouts.udp);
            }
            Command::Services
            | Command::Daemons
            | Command::Timeouts
            | Command::Info
            | Command::Zero(None)
            | Command::Flush => {}
        }
    }

    /// The whole message. `family` is IPVS's number in this kernel.
    pub fn encode(&self, family: u16, sequence: u32) -> Vec<u8> {
        let mut attributes = Writer::default();
        self.write(&mut attributes);
        let flags = match (self.is_dump(), self.ends_with_answer()) {
            (true, _) => REQUEST | ACKNOWLEDGE | DUMP,
            // Its answer is all there is to wait for.
            (false, true) => REQUEST,
            (false, false) => REQUEST | ACKNOWLEDGE,
        };
        message(family, flags, sequence, self.number(), &attributes.finish())
    }
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is done; or 0 less an error number.
    Status(i32),
    /// No more of what was asked for.
    End,
    /// IPVS's number in this kernel.
    Family(u16),
    /// A service.
    Service(ServiceEntry),
    /// A real server, in attributes that are read with [`DestinationEntry::read`]: its family may only
    /// be known from its service.
    Destination(Vec<u8>),
    /// A sync daemon.
    Daemon(SyncDaemon),
    /// Time-outs.
    Timeouts(Timeouts),
    /// IPVS's version (three bytes), and how many buckets its table of connections has.
    Info {
        /// 1.2.1 is 0x010201.
        version: u32,
        /// Buckets.
        table_size: u32,
    },
    /// Something that later kernels may say.
    Unknown,
}

/// The answers in a datagram, each with the sequence number of its request.
pub fn answers(datagram: &[u8]) -> Result<Vec<(u32, Answer)>, CodecError> {
    let mut list = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let word = |at: usize| four(rest, at);
        let length = word(0)? as usize;
        let kind = rest.get(4..6).ok_or(CodecError::Truncated)?;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let sequence = word(8)?;
        let body = rest.get(HEADER..length).ok_or(CodecError::Truncated)?;
        list.push((sequence, answer(kind, body)?));
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(list)
}

fn four(bytes: &[u8], at: usize) -> Result<u32, CodecError> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.map(|four| u32::from_ne_bytes(*four))
        .ok_or(CodecError::Truncated)
}

fn answer(kind: u16, body: &[u8]) -> Result<Answer, CodecError> {
    match kind {
        ERROR => return four(body, 0).map(|code| Answer::Status(code.cast_signed())),
        DONE => return Ok(Answer::End),
        // Other messages of netlink itself.
        0..CONTROL => return Ok(Answer::Unknown),
        _ => {}
    }
    let command = *body.first().ok_or(CodecError::Truncated)?;
    let bytes = body.get(GENERIC_HEADER..).ok_or(CodecError::Truncated)?;
    if kind == CONTROL {
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            if attribute.kind == FAMILY_ID {
                return attribute.u16().map(Answer::Family);
            }
        }
        return Err(CodecError::Missing(FAMILY_ID));
    }
    let nested = |wanted: u16| {
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            if attribute.kind == wanted {
                return Ok(attribute.value);
            }
        }
        Err(CodecError::Missing(wanted))
    };
    let number = |wanted: u16| {
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            if attribute.kind == wanted {
                return attribute.u32();
            }
        }
        Err(CodecError::Missing(wanted))
    };
    match command {
        answer::SERVICE => ServiceEntry::read(nested(top::SERVICE)?).map(Answer::Service),
        answer::DESTINATION => Ok(Answer::Destination(nested(top::DESTINATION)?.to_vec())),
        answer::DAEMON => SyncDaemon::read(nested(top::DAEMON)?).map(Answer::Daemon),
        answer::TIMEOUTS => Ok(Answer::Timeouts(Timeouts {
            tcp: number(top::TIMEOUT_TCP)?,
            tcp_fin: number(top::TIMEOUT_TCP_FIN)?,
            udp: number(top::TIMEOUT_UDP)?,
        })),
        answer::INFO => Ok(Answer::Info {
            version: number(info::VERSION)?,
            table_size: number(info::TABLE_SIZE)?,
        }),
        _ => Ok(Answer::Unknown),
    }
}
