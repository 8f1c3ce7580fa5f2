//! The kernel's IPVS as data plane.

#[allow(dead_code)]
mod codec;
