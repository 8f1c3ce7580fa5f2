//! Where IPVS forwards, the VIP is asked for on the real server by services with a firewall mark of their
//! own, on MASTER and BACKUP, and nobody sees them who does not ask the kernel itself.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::Result;
use lab::{
    Director,
    network::{INTERFACE, run},
    wait,
};

use crate::{
    vip_grid::{Grid, SERVERS, VIPS, has_vip},
    with_modules,
};

const HEAD: &str = "[dataplane]\nmode = \"ipvs\"\n";

const LIMIT: Duration = Duration::from_secs(20);

/// Whether the kernel knows a connection to a real server.
fn asks(director: &Director, server: &str) -> Result<bool> {
    let table = director.node.run("cat", &["/proc/net/ip_vs_conn"])?;
    let server: IpAddr = server.parse()?;
    let written = match server {
        IpAddr::V4(address) => format!("{:08X}", address.to_bits()),
        IpAddr::V6(address) => address
            .segments()
            .map(|segment| format!("{segment:04x}"))
            .join(":"),
    };
    // Protocol, client, VIP, server: address and port each.
    let mut lines = table.lines();
    Ok(lines.any(|line| line.split_whitespace().nth(5) == Some(&written)))
}

/// The services with a mark that the kernel has.
fn marked(director: &Director) -> usize {
    let text = director.node.run("ipvsadm", &["-Ln"]).unwrap();
    text.lines().filter(|line| line.starts_with("FWM ")).count()
}

fn accepts_own(director: &Director) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{INTERFACE}/accept_local");
    let text = director.node.run("cat", &[&path]).unwrap();
    text.trim().to_owned()
}

#[test]
fn ipvs_asks_for_the_vip() {
    let _modules = with_modules();
    let mut grid = Grid::prepare(HEAD, "", false).unwrap();
    grid.start().unwrap();
    grid.walk().unwrap();
    for director in [&grid.master, &grid.backup] {
        assert_eq!((marked(director), accepts_own(director)), (2, "1".into()));
        let services = director.ctl(&["services"]).unwrap();
        assert!(!services.contains("FWM"), "{services}");
        let status = director.status().unwrap();
        assert_eq!(status.data_plane.services.len(), 8);
        assert_eq!(status.data_plane.repairs.count, 0);
        // Their connections are in the kernel's table, and nobody's.
        for server in SERVERS {
            let asked = || Ok(asks(director, server)?.then(|| director.ctl(&["flows"])));
            let flows = wait::until("the kernel knows a probe", LIMIT, asked).unwrap();
            let flows = flows.unwrap();
            assert!(!flows.contains(server), "{flows}");
        }
    }
    // What somebody else takes away comes back.
    let table = grid.master.node.run("ipvsadm", &["-Ln"]).unwrap();
    let line = table
        .lines()
        .find(|l| l.starts_with("FWM ") && !l.contains("IPv6"));
    let mark = line.unwrap().split_whitespace().nth(1).unwrap();
    grid.master
        .node
        .run("ipvsadm", &["-D", "-f", mark])
        .unwrap();
    // The service and its real server. The checks that fail meanwhile change the plan, which hides nothing.
    let repairs = || -> Result<u64> { Ok(grid.master.status()?.data_plane.repairs.count) };
    wait::until_true("the service is back", LIMIT, || Ok(repairs()? > 0)).unwrap();
    assert_eq!(marked(&grid.master), 2);
    grid.wait_for([true, true]).unwrap();
    assert_eq!(repairs().unwrap(), 2);

    // The other role.
    grid.master.stop().unwrap();
    assert_eq!(
        (marked(&grid.master), accepts_own(&grid.master)),
        (0, "0".into())
    );
    grid.backup
        .wait_for("VI_4", lb_user::model::VrrpState::Master)
        .unwrap();
    has_vip(&grid.server, 0, false).unwrap();
    let is_down = || {
        let checks = grid.backup.status()?.checks;
        let mut of_v4 = checks.iter().filter(|check| check.backend == SERVERS[0]);
        Ok(of_v4.all(|check| !check.up))
    };
    wait::until_true("all are down", Duration::from_secs(60), is_down).unwrap();
}

/// A director that is a real server too and learns connections forwards nothing as BACKUP: probes would reach
/// itself. It asks the real servers' own addresses then.
#[test]
fn ipvs_on_a_backup_with_the_vip_asks_elsewhere() {
    let _modules = with_modules();
    let sync = "[lvs_sync_daemon]\ninterface = \"eno16777736\"\nvrrp = \"VI_4\"\nid = 7\n";
    let mut grid = Grid::prepare(&format!("{HEAD}{sync}"), "", false).unwrap();
    grid.start().unwrap();
    grid.wait_for([true, true]).unwrap();
    let vip = format!("{}/32", VIPS[0]);
    let lo = ["address", "add", &vip, "dev", "lo"];
    grid.backup.node.ip(&lo).unwrap();
    has_vip(&grid.server, 0, false).unwrap();
    // The real server's own services listen on all addresses, but for the one for UDP.
    let targets = || -> Result<Vec<String>> {
        let checks = grid.backup.status()?.checks;
        let of_v4 = checks.iter().filter(|check| check.backend == SERVERS[0]);
        Ok(of_v4.map(|check| check.checks[0].target.clone()).collect())
    };
    wait::until_true("own addresses are asked", Duration::from_secs(60), || {
        Ok(targets()?
            .iter()
            .all(|target| target.starts_with(SERVERS[0])))
    })
    .unwrap();
    assert_eq!(marked(&grid.backup), 0);
    let lo = ["address", "del", &vip, "dev", "lo"];
    grid.backup.node.ip(&lo).unwrap();
    wait::until_true("the VIP is asked for", Duration::from_secs(60), || {
        Ok(targets()?.iter().all(|target| target.starts_with(VIPS[0])))
    })
    .unwrap();
}

#[test]
fn ipvs_asks_through_a_tunnel() {
    let _modules = with_modules();
    for module in ["ip_vs", "ipip", "ip6_tunnel"] {
        run(Command::new("modprobe").arg(module)).unwrap();
    }
    let mut grid = Grid::prepare(HEAD, "forward = \"tunnel\"\n", false).unwrap();
    for device in ["tunl0", "ip6tnl0"] {
        grid.server.ip(&["link", "set", device, "up"]).unwrap();
    }
    for device in ["all", "tunl0"] {
        let key = format!("ipv4.conf.{device}.rp_filter");
        grid.server.sysctl(&key, "0").unwrap();
    }
    grid.start().unwrap();
    grid.walk().unwrap();
    let table = grid.master.node.run("ipvsadm", &["-Ln"]).unwrap();
    let tunnels = table.lines().filter(|line| line.contains(" Tunnel "));
    // Each service's and each path's.
    assert_eq!(tunnels.count(), 10, "{table}");
}
