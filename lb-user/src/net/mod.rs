//! Everything the daemon asks of the kernel's network stack.
//!
//! `arp` is a pure codec; `interfaces` a pure table; `netlink` and `announce` do the I/O.

pub mod announce;
pub mod arp;
pub mod interfaces;
pub mod netlink;
