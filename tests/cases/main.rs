//! Tests that need root: the program in the kernel, daemons in namespaces, real peers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod adverts;
mod announcements;
mod bad_input;
mod certificates;
mod checked;
mod choosing;
mod disagreements;
mod doctor;
mod events;
mod flows;
mod fuzz;
mod guarding;
mod guide;
mod hammer;
mod handover;
mod health;
mod health_checkers;
mod health_hostile;
mod ipv6;
mod jumbo;
mod leaving;
mod life;
mod linux;
mod many;
mod metrics;
mod model;
mod on_vip;
mod orders;
mod packets;
mod peers;
mod pools;
mod probes;
mod program;
mod reloads;
mod resets;
mod shapes;
mod short_way;
mod silent;
mod slow;
mod steering;
mod sync_groups;
mod tracking;
mod tracking_more;
mod traffic;
mod trailers;
mod tunnels;
mod virtual_mac;
mod why;

// Notifications.
mod mail;
mod notify;
