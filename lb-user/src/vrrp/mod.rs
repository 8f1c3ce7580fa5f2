//! VRRP versions 2 and 3 (RFC 3768 with RFC 2338's PASS and keepalived's AH; RFC 9568) as keepalived
//! and FRR speak them.
//!
//! `packet`, `replay`, `oddities`, `fsm` and `pace` are pure; `socket` and `frame` own the sockets and `driver` the thread
//! that feeds one machine per instance and performs what it asks for, with `realtime`'s help. What the thread does apart
//! from sockets is in `round` and `groups`: the simulation runs the same code on a virtual clock. Knows nothing of
//! addresses on interfaces, of the data plane or of scripts: the daemon acts on its reports.

mod control;
pub mod driver;
mod frame;
pub mod fsm;
mod groups;
pub mod oddities;
mod pace;
pub mod packet;
mod ports;
mod realtime;
pub mod replay;
mod round;
pub mod runner;
pub mod socket;

#[cfg(test)]
mod simulation;
