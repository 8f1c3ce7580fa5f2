//! The guest's network for the measurement: a way in, two ways out, and who counts what arrived.

use std::{fs, net::Ipv4Addr, process::Command};

use anyhow::{Context, Result, ensure};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
pub const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x43];
/// Frames come in, and leave, by this one of a veth pair.
pub const DEVICE: &str = "in0";
/// Its far end.
pub const FAR_END: &str = "in1";
/// Throws away what is sent.
const NOWHERE: &str = "out0";

/// How packets of IPVS leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As those of XDP do.
    Veth,
    /// By a device that throws them away.
    Nowhere,
}

/// Address of a real server: 2-5.
pub const fn server(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, last)
}

pub fn prepare() -> Result<()> {
    // Nobody but the measurement may send anything.
    for name in ["all", "default"] {
        set(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        set(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
    }
    let mac = "02:00:00:00:00:43";
    for line in [
        &format!("link add {DEVICE} type veth peer name {FAR_END}"),
        &format!("link set {DEVICE} address {mac}"),
        &format!("link set {DEVICE} up"),
        &format!("link set {FAR_END} up"),
        &format!("link add {NOWHERE} type dummy"),
        &format!("link set {NOWHERE} up"),
        "address add 10.1.0.1/32 dev lo",
        &format!("address add {VIP}/32 dev lo"),
    ] {
        ip(line)?;
    }
    for last in 2..=5 {
        for device in [DEVICE, NOWHERE] {
            let address = server(last);
            ip(&format!(
                "neigh replace {address} lladdr 02:00:00:00:00:0{last} dev {device} nud permanent"
            ))?;
        }
    }
    lead(Way::Veth)
}

/// Makes the way to the real servers.
pub fn lead(way: Way) -> Result<()> {
    let device = match way {
        Way::Veth => DEVICE,
        Way::Nowhere => NOWHERE,
    };
    ip(&format!(
        "route replace 10.1.0.0/24 dev {device} src 10.1.0.1"
    ))
}

/// Frames that arrived by each way so far: those that the veth's far end dropped, and those that the
/// other device threw away.
pub fn arrived() -> Result<[u64; 2]> {
    let output = Command::new("ethtool").args(["-S", FAR_END]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let dropped = text
        .lines()
        .filter(|line| line.contains("rx_queue_") && line.contains("xdp_drops"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    let path = format!("/sys/class/net/{NOWHERE}/statistics/tx_packets");
    Ok([dropped, fs::read_to_string(path)?.trim().parse()?])
}

pub fn ifindex() -> Result<u32> {
    let path = format!("/sys/class/net/{DEVICE}/ifindex");
    Ok(fs::read_to_string(path)?.trim().parse()?)
}

fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| name.to_owned())
}

fn ip(arguments: &str) -> Result<()> {
    let words = arguments.split_whitespace();
    let status = Command::new("ip").args(words).status().context("ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}
