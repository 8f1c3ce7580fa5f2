//! What becomes of the services when others touch them, and when the kernel refuses some.

use std::{net::IpAddr, process::Command};

use lab::network::run;
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        plan::{BackendState::Up, PlannedBackend},
    },
    model::Target,
};

use super::{Site, WEB, services, table, ways, with_site};
use crate::{planes::SERVERS, program::tcp};

/// Looks of a second each, of which every other one replaces a service that has connections.
const LOOKS: u64 = 6;

#[test]
fn the_services_are_kept_whole() {
    with_site(|site| {
        for last in 1..=SERVERS {
            site.resolve(last, true);
        }
        site.apply(Up);
        repairs_while_services_are_replaced(site);
        what_the_kernel_refuses(site);
    });
}

/// Others remove a service that nobody uses, while one that has connections is replaced.
fn repairs_while_services_are_replaced(site: &mut Site) {
    site.resolve(2, false);
    let ports = 1000..1003;
    let mut servers = ports.map(|port| (port, site.server_of(&tcp(port, WEB, "S"))));
    let (port, _) = servers.find(|(_, last)| *last == 2).unwrap();
    drop(servers);
    let first = mark_of("10.0.0.2:");
    for look in 1..=LOOKS {
        assert_eq!(site.server_of(&tcp(port, WEB, "A")), 2);
        let quiet = mark_of("10.0.0.4:");
        run(Command::new("ipvsadm").args(["-D", "-f", &quiet])).unwrap();
        site.tend(1);
        // The service and its real server.
        assert_eq!(site.planes.snapshot().repairs.count, 2 * look);
    }
    assert_ne!(mark_of("10.0.0.2:"), first, "{}", table());
    assert_eq!(site.planes.take_repairs().len() as u64, LOOKS);
    site.resolve(2, true);
}

/// There is a slow path for all real servers, or for none.
fn what_the_kernel_refuses(site: &mut Site) {
    let mut refused = services(Up);
    let group: IpAddr = [224, 0, 0, 9].into();
    let backend = PlannedBackend::new(Target::Host(group), 1, Up);
    refused[1].backends.push(backend);
    site.planes.apply(&Plan::of(refused)).unwrap();
    let slow_path = site.slow_path();
    assert!(!site.planes.has_slow_path());
    let obstacle = slow_path.obstacle.unwrap();
    assert!(obstacle.contains("224.0.0.9"), "{obstacle}");
    assert!(ways().is_empty(), "{}", table());
    site.tend(1);
    assert!(ways().is_empty(), "{}", table());
    site.apply(Up);
    assert_eq!(ways().len(), 10, "{}", table());
}

/// The mark of the newest service of a real server.
fn mark_of(server: &str) -> String {
    let text = table();
    let lines: Vec<&str> = text.lines().collect();
    let marks = lines.windows(2).filter(|pair| pair[1].contains(server));
    let mark = |pair: &[&str]| pair[0].split_whitespace().nth(1).map(str::to_owned);
    marks.filter_map(mark).max().unwrap()
}
