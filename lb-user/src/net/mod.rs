//! Everything the daemon asks of the kernel's network stack.
//!
//! `arp`, `ndisc` and `nft` are pure codecs; `interfaces` is a pure table, `announcing` says purely what is announced
//! when; `asking` is how netlink is asked; the others do the I/O.

pub mod announce;
pub mod announcing;
pub mod arp;
pub mod arping;
mod asking;
pub mod firewall;
pub mod interfaces;
pub mod macvlan;
pub mod ndisc;
pub mod netlink;
pub mod nft;
pub mod placing;
pub mod routes;
pub mod sysctl;
