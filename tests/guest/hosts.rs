//! Hosts that are set in ways that are no part of lbd's configuration, and that change while it runs.

use std::time::Duration;

use lab::{Director, Lab, network::INTERFACE, wait};
use lb_user::model::VrrpState;

use crate::with_modules;

const LIMIT: Duration = Duration::from_secs(20);

/// The interface of the sync daemon goes away and comes back: real servers are followed all the same, and connections
/// are shared again.
#[test]
fn a_sync_interface_that_is_gone() {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let make = || {
        node.ip(&["link", "add", "sync0", "type", "dummy"]).unwrap();
        node.ip(&["link", "set", "sync0", "up"]).unwrap();
        node.ip(&["address", "add", "10.9.0.1/24", "dev", "sync0"])
            .unwrap();
    };
    let delete = || node.ip(&["link", "delete", "sync0"]).unwrap();
    let config = |interface: &str, id: u8, last: u8| {
        let servers: String = [45, last]
            .map(|last| format!("[[service.backend]]\naddress = \"10.1.15.{last}\"\n"))
            .concat();
        format!(
            "[dataplane]\nmode = \"ipvs\"\ninterfaces = [\"{INTERFACE}\"]\n[lvs_sync_daemon]\ninterface = \"{interface}\"\n\
             vrrp = \"VI_1\"\nid = {id}\n[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
             addresses = [\"10.1.15.50/32\"]\nadvert_interval = \"1s\"\n[[service]]\naddress = \"10.1.15.50:80\"\n{servers}"
        )
    };
    let mut lbd = Director::new(&lab, &node, &config("sync0", 7, 46)).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", VrrpState::Master).unwrap();
    let tells = |lbd: &Director, id: u8| {
        let text = format!("master sync daemon (mcast=sync0, syncid={id}");
        wait::until_true("the kernel tells of connections", LIMIT, || {
            let daemons = node.run("ipvsadm", &["-L", "--daemon"])?;
            let trouble = lbd.status()?.data_plane.trouble;
            Ok(daemons.starts_with(&text) && trouble.is_none())
        })
        .unwrap_or_else(|error| panic!("{error:?}: {}", lbd.log()));
    };
    let complains = |lbd: &Director| {
        wait::until_true("it is told", LIMIT, || {
            Ok(lbd
                .ctl(&["status"])?
                .contains("there is no interface sync0"))
        })
        .unwrap();
    };
    let reload = |lbd: &Director, id: u8, last: u8| {
        lbd.configure(&config("sync0", id, last)).unwrap();
        lbd.ctl(&["reload"]).unwrap();
        let server = format!("10.1.15.{last}:80");
        let table = node.run("ipvsadm", &["-Ln"]).unwrap();
        assert_eq!(table.matches("Route").count(), 2, "{table}");
        assert!(table.contains(&server), "{table}");
    };
    // Not there yet.
    complains(&lbd);
    reload(&lbd, 7, 47);
    make();
    tells(&lbd, 7);
    // What it shares is changed, with and without an interface.
    reload(&lbd, 8, 48);
    tells(&lbd, 8);
    delete();
    complains(&lbd);
    reload(&lbd, 9, 49);
    make();
    tells(&lbd, 9);
    assert_eq!(lbd.status().unwrap().data_plane.repairs.count, 0);
    // Made again under its name: the kernel's socket is bound to one that is no more.
    let seen = lbd.log().len();
    delete();
    make();
    wait::until_true("its socket follows", LIMIT, || {
        let log = lbd.log();
        let mut lines = log[seen..].lines();
        let told = |line: &str| {
            line.contains("sync daemon was made again")
                && line.contains("start a sync daemon on sync0")
        };
        Ok(lines.any(told))
    })
    .unwrap_or_else(|error| panic!("{error:?}: {}", &lbd.log()[seen..]));
    tells(&lbd, 9);
    assert_eq!(lbd.status().unwrap().data_plane.repairs.count, 0);
    lbd.stop().unwrap();
    assert_eq!(node.run("ipvsadm", &["-L", "--daemon"]).unwrap(), "");
}

/// Where a socket may have any address (ip_nonlocal_bind), a BACKUP holds its services all the same.
#[test]
fn a_host_whose_sockets_may_have_any_address() {
    let _modules = with_modules();
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

/// Without a bpffs there is nowhere to pin programs: XDP cannot be, and IPVS forwards.
#[test]
fn a_host_without_a_bpffs() {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let config = |mode: &str| {
        format!(
            "[dataplane]\nmode = \"{mode}\"\ninterfaces = [\"{INTERFACE}\"]\n[[service]]\naddress = \"10.1.15.50:80\"\n\
             [[service.backend]]\naddress = \"10.1.15.45\"\n"
        )
    };
    for (mode, reason) in [("auto", "is not on a bpffs"), ("ipvs", "mode = \"ipvs\"")] {
        let mut lbd = Director::new(&lab, &node, &config(mode)).unwrap();
        let text = std::fs::read_to_string(&lbd.config).unwrap();
        let elsewhere = text.replace(&lab.pin_path("node1").display().to_string(), "/tmp");
        std::fs::write(&lbd.config, elsewhere).unwrap();
        lbd.start(&lab).unwrap();
        let plane = lbd.status().unwrap().data_plane;
        assert_eq!(plane.kind, "ipvs");
        assert!(plane.choice.contains(reason), "{}", plane.choice);
        lbd.stop().unwrap();
    }
}
