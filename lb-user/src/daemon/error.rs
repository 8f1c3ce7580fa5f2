//! Why the daemon cannot run, or refuses a configuration.

use std::{io, net::IpAddr};

use thiserror::Error;

use crate::{
    api::server::SocketError,
    config::{ConfigError, keys::BadKey},
    dataplane::DataPlaneError,
    net::netlink::NetlinkError,
    notify::FifoError,
    script::NoSuchUser,
};

/// Why the daemon cannot run.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    ReadConfig {
        /// The file.
        path: String,
        /// What failed.
        source: io::Error,
    },
    /// A file of sources has a line that is no prefix.
    #[error(
        "{path}:{line}: `{text}` is not a prefix; write an address or a network without host bits, such as 192.0.2.0/24"
    )]
    BadSource {
        /// The file.
        path: String,
        /// Its line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A file is no key.
    #[error("{path}: {why}; `openssl rand -hex 32` makes one, to be put behind `hex:`")]
    BadKey {
        /// The file.
        path: String,
        /// What is wrong with what stands there.
        why: BadKey,
    },
    /// A file of authorities has none.
    #[error(
        "{0} has no certificate in PEM; `ca_file` names the authority that vouches for the mail server"
    )]
    NoCertificates(String),
    /// More prefixes than the maps hold.
    #[error(
        "{count} prefixes are blocked or allowed, and the tables hold {most}; merge neighbouring ones"
    )]
    TooManySources {
        /// How many.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An interface is missing.
    #[error("interface {0} does not exist; `ip link` lists those that do")]
    NoInterface(String),
    /// The name for a virtual MAC address's interface belongs to somebody else's.
    #[error(
        "interface {0} exists and is not one that lbd made; remove it, or give another name as `vmac_interface`"
    )]
    ForeignInterface(String),
    /// The source of adverts is not on the interface.
    #[error(
        "{name}: source_address {source_address} is not an address of {interface}; `ip address show {interface}` lists them"
    )]
    NoSourceAddress {
        /// Instance name.
        name: String,
        /// Configured address.
        source_address: IpAddr,
        /// Interface.
        interface: String,
    },
    /// A reload wants what only a start can do.
    #[error(
        "the XDP program runs on {running}, and the new configuration wants {wanted}: restart lbd for that"
    )]
    NeedsRestart {
        /// Interfaces in use.
        running: String,
        /// Interfaces wanted.
        wanted: String,
    },
    /// A part of the daemon has ended.
    #[error("the VRRP thread has ended; lbd cannot go on without it")]
    NoVrrp,
    /// The script account is missing.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
    /// The FIFO cannot be had.
    #[error(transparent)]
    Fifo(#[from] FifoError),
    /// The API cannot listen.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel's network stack does not answer.
    #[error("{}", with_sources(.0))]
    Netlink(#[from] NetlinkError),
    /// The data plane cannot start.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
    /// Something of the operating system failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What failed.
        source: io::Error,
    },
}

/// An error with its sources, in one line.
pub(crate) fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
