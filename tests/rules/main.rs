//! Rules of the project that a compiler does not check: who may import whom, sizes, words, and
//! that the example configurations say what the daemon reads.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod config_files;
mod decoders;
mod source;
mod tidy;
