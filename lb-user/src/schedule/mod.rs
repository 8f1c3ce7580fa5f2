//! The tables that the XDP program walks or indexes for new connections. Pure.
//!
//! `ring` spreads turns for round robin; `hashed` fills the tables of `sh` and `mh` as the kernel's
//! IPVS does.

pub mod hashed;
pub mod ring;
