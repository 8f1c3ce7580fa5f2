//! Health checks of the VIP on the real server: on MASTER and BACKUP, over IPv4 and IPv6, and what a real
//! server without the VIP looks like.

mod grid;

use std::time::Duration;

use lab::{Director, Guide, Process, guide::VIP, network::INTERFACE, wait};

use self::grid::Grid;

/// What `status` says of a real server once it is up or down.
fn wait_for(director: &Director, backend: &str, up: bool) -> (String, String) {
    let what = format!("{backend} is {}", if up { "up" } else { "down" });
    wait::until(&what, Duration::from_secs(15), || {
        let checks = director.status()?.checks;
        let found = checks
            .into_iter()
            .find(|check| check.backend == backend && check.up == up);
        Ok(found.map(|check| {
            let target = check.checks[0].target.clone();
            (check.cause.unwrap_or_default(), target)
        }))
    })
    .unwrap()
}

#[test]
fn a_real_server_without_the_vip_is_down_on_master_and_backup() {
    let guide = Guide::start().unwrap();
    let directors = [&guide.node1, &guide.node2];
    for director in directors {
        for backend in ["10.1.15.45", "10.1.15.46"] {
            let (_, target) = wait_for(director, backend, true);
            assert_eq!(target, format!("{VIP}:80 on {backend}"));
        }
    }
    let vip = format!("{VIP}/32");
    let rs1 = guide.rs1.node();
    rs1.ip(&["address", "del", &vip, "dev", "lo"]).unwrap();
    for director in directors {
        let (cause, _) = wait_for(director, "10.1.15.45", false);
        assert!(
            cause.contains("10.1.15.50:80 on 10.1.15.45 did not accept a connection within 1s (is 10.1.15.50 on its lo?)"),
            "{cause}"
        );
    }
    rs1.ip(&["address", "add", &vip, "dev", "lo"]).unwrap();
    for director in directors {
        wait_for(director, "10.1.15.45", true);
    }
    // Nothing is left where the director has no business of its own.
    let addresses = guide
        .node2
        .node
        .ip(&["address", "show", "dev", INTERFACE])
        .unwrap();
    assert!(!addresses.contains("10.1.15.50"), "{addresses}");
}

/// One that has the VIP, and whose service listens on its own address alone: clients would be refused.
#[test]
fn a_service_on_another_address_is_down_with_that_reason() {
    let mut guide = Guide::start().unwrap();
    guide.rs1.stop().unwrap();
    let own = [
        "TCP-LISTEN:80,bind=10.1.15.45,fork,reuseaddr",
        "EXEC:/bin/cat",
    ];
    let socat = "/usr/bin/socat".as_ref();
    let _server = Process::start(&guide.lab, guide.rs1.node(), "own", socat, &own).unwrap();
    wait::until_true("socat listens", Duration::from_secs(10), || {
        let sockets = guide.rs1.node().run("ss", &["-Hltn"])?;
        Ok(sockets.contains("10.1.15.45:80 "))
    })
    .unwrap();
    for director in [&guide.node1, &guide.node2] {
        let (cause, target) = wait_for(director, "10.1.15.45", false);
        assert_eq!(target, format!("{VIP}:80 on 10.1.15.45"));
        let said = "cannot connect to 10.1.15.50:80 on 10.1.15.45: Connection refused";
        let asked = "(does the service listen on 10.1.15.50?)";
        assert!(cause.contains(said) && cause.ends_with(asked), "{cause}");
    }
}

/// TCP, HTTP, HTTPS, UDP and DNS; IPv4 and IPv6; MASTER and BACKUP.
#[test]
fn every_protocol_asks_for_the_vip() {
    let mut grid = Grid::prepare("", "", true).unwrap();
    grid.start().unwrap();
    grid.walk().unwrap();
}
