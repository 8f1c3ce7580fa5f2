//! When the master speaks, as the client hears it.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{Node, network::INTERFACE};
use socket2::{Domain, Protocol, Socket, Type};

/// ETH_P_IP.
const IPV4: u16 = 0x0800;
/// VRRP's protocol number, and where a frame without tags has it.
const VRRP: (usize, u8) = (23, 112);

/// Waits for the next advert on the client's network.
pub fn hear(client: &Node, limit: Duration) -> Result<()> {
    client.within(move || listen(limit))?
}

fn listen(limit: Duration) -> Result<()> {
    let protocol = i32::from(IPV4.to_be());
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.bind_device(Some(INTERFACE.as_bytes()))?;
    socket.set_read_timeout(Some(limit))?;
    let end = Instant::now() + limit;
    let mut frame = [0; 2048];
    while Instant::now() < end {
        let length = socket.read(&mut frame).context("no frame came")?;
        let (at, number) = VRRP;
        if length > at && frame[at] == number {
            return Ok(());
        }
    }
    bail!("no advert came within {limit:?}")
}
