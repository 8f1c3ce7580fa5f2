//! Services and real servers as `ipvsadm` prints them, to the blank, and in its order. Pure.

use std::net::IpAddr;

use lb_user::api::proto::{BackendSnapshot, DataPlaneSnapshot, ServiceSnapshot, Traffic};

/// `lbctl services`, as `ipvsadm -Ln`.
pub fn services(plane: &DataPlaneSnapshot) -> String {
    let mut out = head(plane);
    out += "Prot LocalAddress:Port Scheduler Flags\n";
    out += "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n";
    for service in listed(plane) {
        let (protocol, address) = name(service);
        out += &format!(
            "{protocol:<4} {address} {}{}\n",
            service.scheduler, service.flags
        );
        for backend in servers(service) {
            out += &format!(
                "  -> {:<28} {:<7} {:<6} {:<10} {:<10}\n",
                remote(service, backend),
                backend.forward,
                backend.listed_weight,
                backend.active,
                backend.inactive
            );
        }
    }
    out
}

/// `lbctl services --stats`, as `ipvsadm -Ln --stats`. Direct return and tunnels show only one
/// direction, so the outgoing columns are 0, as with IPVS.
pub fn service_stats(plane: &DataPlaneSnapshot) -> String {
    let head = "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n";
    let of = |backend: &BackendSnapshot| Traffic {
        connections: backend.connections,
        in_packets: backend.packets,
        out_packets: backend.out_packets,
        in_bytes: backend.bytes,
        out_bytes: backend.out_bytes,
    };
    numbers(plane, head, |service| service.total, of)
}

/// `lbctl services --rate`, as `ipvsadm -Ln --rate`.
pub fn service_rates(plane: &DataPlaneSnapshot) -> String {
    let head = "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n";
    numbers(
        plane,
        head,
        |service| service.rates,
        |backend| backend.rates,
    )
}

fn numbers(
    plane: &DataPlaneSnapshot,
    columns: &str,
    of_service: impl Fn(&ServiceSnapshot) -> Traffic,
    of_backend: impl Fn(&BackendSnapshot) -> Traffic,
) -> String {
    let mut out = head(plane) + columns + "  -> RemoteAddress:Port\n";
    for service in listed(plane) {
        let row = row(of_service(service));
        let (protocol, address) = name(service);
        out += &format!("{protocol:<4} {address:<28} {row}\n");
        for backend in servers(service) {
            let row = self::row(of_backend(backend));
            out += &format!("  -> {:<28} {row}\n", remote(service, backend));
        }
    }
    out
}

fn head(plane: &DataPlaneSnapshot) -> String {
    format!(
        "IP Virtual Server version 1.2.1 (size={})\n",
        plane.flow_slots
    )
}

fn row(traffic: Traffic) -> String {
    format!(
        "{:>8} {:>8} {:>8} {:>8} {:>8}",
        short(traffic.connections),
        short(traffic.in_packets),
        short(traffic.out_packets),
        short(traffic.in_bytes),
        short(traffic.out_bytes)
    )
}

/// Large numbers as ipvsadm shortens them: eight columns at most.
fn short(number: u64) -> String {
    match number {
        0..=99_999_999 => number.to_string(),
        100_000_000..=99_999_999_999 => format!("{}K", number / 1_000),
        100_000_000_000..=99_999_999_999_999 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

/// Protocol and address; one of a firewall's mark is called by that.
fn name(service: &ServiceSnapshot) -> (&str, String) {
    match service.fwmark {
        None => (&service.protocol, service.address.clone()),
        Some(mark) if is_v6(service) => ("FWM", format!("{mark} IPv6")),
        Some(mark) => ("FWM", mark.to_string()),
    }
}

fn is_v6(service: &ServiceSnapshot) -> bool {
    service.address.starts_with('[')
}

/// Services that the data plane holds: by mark, those without one first; IPv4 first, then by protocol
/// number, address and port.
fn listed(plane: &DataPlaneSnapshot) -> Vec<&ServiceSnapshot> {
    let mut list: Vec<_> = plane.services.iter().filter(|s| s.listed).collect();
    list.sort_by_key(|service| {
        let protocol = match service.protocol.as_str() {
            "TCP" => 6,
            "UDP" => 17,
            _ => 132,
        };
        let (address, ports) = service.address.rsplit_once(':').unwrap_or_default();
        let first = ports.split('-').next().unwrap_or_default();
        let address = parsed(address);
        (
            service.fwmark,
            address.is_some_and(|address| address.is_ipv6()),
            protocol,
            address,
            first.parse::<u16>().unwrap_or(0),
        )
    });
    list
}

/// Real servers that the data plane holds, by address and port.
fn servers(service: &ServiceSnapshot) -> Vec<&BackendSnapshot> {
    let mut list: Vec<_> = service.backends.iter().filter(|b| b.listed).collect();
    list.sort_by_key(|backend| (parsed(&host(service, backend)), backend.port));
    list
}

fn parsed(text: &str) -> Option<IpAddr> {
    text.trim_matches(|c| c == '[' || c == ']').parse().ok()
}

/// The address in the table; the director's own stack is its loopback address.
fn host(service: &ServiceSnapshot, backend: &BackendSnapshot) -> String {
    match (backend.address.as_str(), is_v6(service)) {
        ("local", false) => "127.0.0.1".to_owned(),
        ("local", true) => "::1".to_owned(),
        (address, _) => address.to_owned(),
    }
}

fn remote(service: &ServiceSnapshot, backend: &BackendSnapshot) -> String {
    let (address, port) = (host(service, backend), backend.port);
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}
