//! Everything the daemon asks of the kernel's network stack.
//!
//! `arp` and `ndisc` are pure codecs; `interfaces` a pure table; `netlink`, `routes` and `announce` do the I/O.

pub mod announce;
pub mod arp;
pub mod interfaces;
pub mod ndisc;
pub mod netlink;
pub mod routes;
