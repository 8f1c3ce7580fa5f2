//! Everything the daemon asks of the kernel's network stack.
//!
//! `arp` and `ndisc` are pure codecs; `interfaces` is a pure table, `announcing` says purely what is announced when;
//! `netlink`, `routes` and `announce` do the I/O.

pub mod announce;
pub mod announcing;
pub mod arp;
pub mod arping;
pub mod interfaces;
pub mod ndisc;
pub mod netlink;
pub mod routes;
