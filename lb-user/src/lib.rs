//! lbd, a layer-4 load balancer, as a library: the daemon's parts, pure logic apart from sockets,
//! clocks and maps. docs/architecture.md has the map.

pub mod api;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod events;
pub mod health;
pub mod model;
pub mod net;
pub mod notify;
pub mod schedule;
pub mod script;
pub mod track;
pub mod vrrp;
