//! Hosts that are set in ways that are no part of lbd's configuration, and that change while it runs.

use std::{process::Command, time::Duration};

use lab::{
    Director, Lab,
    network::{INTERFACE, run},
    wait,
};
use lb_user::model::VrrpState;

use crate::with_modules;

const LIMIT: Duration = Duration::from_secs(20);

/// Where a socket may have any address (ip_nonlocal_bind), a BACKUP holds its services all the same.
#[test]
fn a_host_whose_sockets_may_have_any_address() {
    let _modules = with_modules();
    run(Command::new("modprobe").arg("ip_vs")).unwrap();
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    for family in ["ipv4", "ipv6"] {
        node.sysctl(&format!("{family}.ip_nonlocal_bind"), "1")
            .unwrap();
    }
    let service = |vip: &str, server: &str| {
        format!(
            "[[service]]\naddress = \"{vip}:80\"\n[[service.backend]]\naddress = \"{server}\"\n"
        )
    };
    let config = format!(
        "[dataplane]\nmode = \"ipvs\"\ninterfaces = [\"{INTERFACE}\"]\n[lvs_sync_daemon]\ninterface = \"{INTERFACE}\"\n\
         vrrp = \"VI_1\"\n[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
         addresses = [\"10.1.15.50/32\", \"10.1.15.51/32\"]\nadvert_interval = \"100s\"\n{}{}",
        service("10.1.15.50", "10.1.15.45"),
        service("10.1.15.51", "10.1.15.45"),
    );
    let mut lbd = Director::new(&lab, &node, &config).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", VrrpState::Backup).unwrap();
    let seen = || {
        let table = node.run("ipvsadm", &["-Ln"]).unwrap();
        let only = node.run("cat", &["/proc/sys/net/ipv4/vs/backup_only"]);
        let held = |vip: &str| table.contains(&format!("{vip}:80"));
        (
            held("10.1.15.50"),
            held("10.1.15.51"),
            only.unwrap().trim().to_owned(),
        )
    };
    let wait_for = |expected| {
        wait::until_true("the table", LIMIT, || Ok(seen() == expected))
            .unwrap_or_else(|error| panic!("{error:?}: {:?}", seen()));
    };
    wait_for((true, true, "0".to_owned()));
    // One that is this host's own after all, as on a director that is a real server too.
    node.ip(&["address", "add", "10.1.15.51/32", "dev", "lo"])
        .unwrap();
    wait_for((true, false, "1".to_owned()));
    lbd.stop().unwrap();
}
