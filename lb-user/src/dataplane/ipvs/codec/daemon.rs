//! Sync daemons and time-outs in attributes. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::address::exact;
use crate::dataplane::genetlink::attribute::{CodecError, Writer, attributes};

/// IPVS_DAEMON_ATTR_*.
mod attr {
    pub const STATE: u16 = 1;
    pub const INTERFACE: u16 = 2;
    pub const ID: u16 = 3;
    pub const LENGTH: u16 = 4;
    pub const GROUP: u16 = 5;
    pub const GROUP6: u16 = 6;
    pub const PORT: u16 = 7;
    pub const TTL: u16 = 8;
}

/// Which end of the kernel's connection synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// Tells others of its connections.
    Master,
    /// Learns theirs.
    Backup,
}

impl SyncState {
    /// IP_VS_STATE_MASTER, IP_VS_STATE_BACKUP.
    pub const fn number(self) -> u32 {
        match self {
            SyncState::Master => 1,
            SyncState::Backup => 2,
        }
    }

    /// As ipvsadm has it.
    pub const fn name(self) -> &'static str {
        match self {
            SyncState::Master => "master",
            SyncState::Backup => "backup",
        }
    }
}

/// A thread of the kernel's that synchronises connections. What is `None` is the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncDaemon {
    /// Which end.
    pub state: SyncState,
    /// Interface of its packets.
    pub interface: String,
    /// 0 to 255; a backup believes only those of its own, but 0 believes all.
    pub id: u32,
    /// Longest message, bytes.
    pub length: Option<u16>,
    /// Multicast group.
    pub group: Option<IpAddr>,
    /// UDP port.
    pub port: Option<u16>,
    /// TTL.
    pub ttl: Option<u8>,
}

impl SyncDaemon {
    /// One of which nothing else is said.
    pub const fn bare(state: SyncState) -> Self {
        Self {
            state,
            interface: String::new(),
            id: 0,
            length: None,
            group: None,
            port: None,
            ttl: None,
        }
    }

    /// Writes the attributes in ipvsadm's order.
    pub fn write(&self, out: &mut Writer) {
        out.put_u32(attr::STATE, self.state.number());
        out.put_text(attr::INTERFACE, &self.interface);
        out.put_u32(attr::ID, self.id);
        if let Some(length) = self.length {
            out.put_u16(attr::LENGTH, length);
        }
        if let Some(port) = self.port {
            out.put_u16(attr::PORT, port);
        }
        if let Some(ttl) = self.ttl {
            out.put_u8(attr::TTL, ttl);
        }
        match self.group {
            Some(IpAddr::V4(group)) => out.put(attr::GROUP, &group.octets()),
            Some(IpAddr::V6(group)) => out.put(attr::GROUP6, &group.octets()),
            None => {}
        }
    }

    /// Reads the attributes of a daemon.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut state = None;
        let mut read = Self::bare(SyncState::Master);
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            match attribute.kind {
                attr::STATE => state = Some(attribute.u32()?),
                attr::INTERFACE => read.interface = attribute.text(),
                attr::ID => read.id = attribute.u32()?,
                attr::LENGTH => read.length = Some(attribute.u16()?),
                attr::PORT => read.port = Some(attribute.u16()?),
                attr::TTL => read.ttl = Some(attribute.u8()?),
                attr::GROUP => {
                    let octets: [u8; 4] = exact(&attribute)?;
                    read.group = Some(IpAddr::from(octets));
                }
                attr::GROUP6 => {
                    let octets: [u8; 16] = exact(&attribute)?;
                    read.group = Some(IpAddr::from(octets));
                }
                _ => {}
            }
        }
        read.state = match state.ok_or(CodecError::Missing(attr::STATE))? {
            1 => SyncState::Master,
            2 => SyncState::Backup,
            value => {
                return Err(CodecError::Value {
                    kind: attr::STATE,
                    value,
                });
            }
        };
        Ok(read)
    }
}

/// Time-outs of connections, seconds. 0 in a request leaves one as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}
