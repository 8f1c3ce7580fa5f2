//! What forwarding writes to a frame.

pub mod direct;
