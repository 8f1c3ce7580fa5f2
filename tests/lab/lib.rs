//! A laboratory of network namespaces: hosts on a switch, real servers, directors, and the means
//! to talk to them, break them and watch them.
//!
//! Everything a laboratory makes is written to a state directory first, so that a later run can
//! remove what an interrupted one left behind.

pub mod arrivals;
pub mod binaries;
pub mod director;
pub mod download;
pub mod drips;
pub mod guide;
pub mod hostile;
pub mod http;
pub mod mail;
pub mod network;
pub mod peer;
pub mod process;
pub mod registry;
pub mod server;
pub mod servers;
pub mod sniffer;
pub mod soak;
pub mod steps;
pub mod unheard;
pub mod wait;
pub mod witness;

pub use director::Director;
pub use download::Download;
pub use drips::Drips;
pub use guide::Guide;
pub use network::{Lab, Node};
pub use process::Process;
