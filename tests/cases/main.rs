//! Tests that need root: the program in the kernel, daemons in namespaces, real peers.

mod adverts;
mod bad_input;
mod flows;
mod guide;
mod life;
mod packets;
mod program;
