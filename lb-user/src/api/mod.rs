//! HTTP and JSON on a unix socket: what `lbctl` and curl use.
//!
//! `proto` is pure: the documents and paths, and so are `metrics` and `page`, which make other forms of them.
//! `server` answers requests by asking the daemon, `web` those that come over TCP; `client` is `lbctl`'s side.

pub mod client;
pub mod metrics;
pub mod page;
pub mod proto;
pub mod server;
pub mod web;
