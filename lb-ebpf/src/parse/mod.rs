//! Headers from the outside in. Each module turns bytes into the few facts that later steps need
//! and writes nothing.

pub mod ethernet;
pub mod ipv4;
pub mod transport;
