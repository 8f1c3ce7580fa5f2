//! VRRP version 2 as keepalived speaks it (RFC 3768, with RFC 2338's PASS).
//!
//! `packet` and `fsm` are pure; `socket` owns the raw sockets and `driver` the thread that feeds
//! one machine per instance and performs what it asks for. Knows nothing of addresses on
//! interfaces, of the data plane or of scripts: the daemon acts on its reports.

pub mod driver;
pub mod fsm;
pub mod packet;
pub mod runner;
pub mod socket;
