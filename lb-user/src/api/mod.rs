//! HTTP and JSON on a unix socket: what `lbctl` and curl use.
//!
//! `proto` is pure: the documents and paths. `server` answers requests by asking the daemon;
//! `client` is `lbctl`'s side.

pub mod client;
pub mod proto;
pub mod server;
