//! The deployment guide's cluster with the kernel's IPVS in the place of XDP: users notice nothing,
//! and operators see the same with lbctl as with ipvsadm.

use std::{collections::BTreeSet, fs, time::Duration};

use lab::{
    Director, Download, Drips, Guide, Lab, Node, Process,
    guide::{self, Settings, VIP},
    http,
    network::INTERFACE,
    server::WebServer,
    wait,
};
use lb_common::probe::{MARK, MARK_MASK};
use lb_user::model::VrrpState;

use crate::with_modules;

pub const MODE: &str = "[dataplane]\nmode = \"ipvs\"\n[lvs_sync_daemon]\ninterface = \"eno16777736\"\nvrrp = \"VI_1\"\nid = 7\n";

pub fn with_ipvs(settings: &Settings) -> String {
    MODE.to_owned() + &guide::config(settings)
}

pub fn shares(guide: &Guide, requests: usize) -> [usize; 2] {
    let pages = http::get_many(&guide.client, VIP, requests).unwrap();
    ["rs1", "rs2"].map(|name| pages.iter().filter(|page| *page == name).count())
}

/// How many of 40 requests each real server must get: none is lost, and the scheduler is disturbed by nothing.
/// A sorry server that leaves when the last of its connections has run out, minutes after the real servers came
/// back, makes the kernel's scheduler begin its round again (`ip_vs_wrr_dest_changed`); then they are counted anew.
fn are_exactly(guide: &Guide, expected: [usize; 2]) {
    let directors = [&guide.node1, &guide.node2];
    let sorry_servers = || {
        directors.map(|director| {
            let table = director.node.run("ipvsadm", &["-Ln"]).unwrap();
            table.matches("127.0.0.1:80").count()
        })
    };
    let before = sorry_servers();
    let mut seen = shares(guide, 40);
    let left = |(before, now): (usize, usize)| now < before;
    if before.into_iter().zip(sorry_servers()).any(left) {
        seen = shares(guide, 40);
    }
    let logs = || directors.map(|director| format!("{}:\n{}", director.node.name, director.log()));
    assert_eq!(seen, expected, "{}", logs().concat());
}

/// Waits until both directors know both real servers to be up.
fn all_well(guide: &Guide) {
    for director in [&guide.node1, &guide.node2] {
        director
            .wait_for_backends(&["up", "up", "draining"])
            .unwrap();
    }
}

/// lbctl prints what ipvsadm prints. Counters move between the two; when all is quiet they do not.
pub fn same_views(director: &Director) {
    for (ours, theirs) in [
        (None, None),
        (Some("--stats"), Some("--stats")),
        (Some("--rate"), Some("--rate")),
    ] {
        let mut seen = (String::new(), String::new());
        let same = wait::until_true("lbctl and ipvsadm agree", Duration::from_secs(20), || {
            let own: Vec<&str> = ["services"].into_iter().chain(ours).collect();
            let kernel: Vec<&str> = ["-Ln"].into_iter().chain(theirs).collect();
            seen = (director.ctl(&own)?, director.node.run("ipvsadm", &kernel)?);
            Ok(lines(&seen.0) == lines(&seen.1))
        });
        assert!(same.is_ok(), "{ours:?}:\n{}\n{}", seen.0, seen.1);
        println!("{}", seen.0);
    }
}

/// What is to be compared: all but the services of health checks, which lbctl does not show.
fn lines(text: &str) -> Vec<&str> {
    let mut is_check = false;
    let all = text.lines().map(str::trim_end);
    all.filter(|line| {
        if !line.starts_with("  ->") {
            let mark = line
                .strip_prefix("FWM ")
                .and_then(|rest| rest.split_whitespace().next()?.parse::<u32>().ok());
            is_check = mark.is_some_and(|mark| mark & MARK_MASK == MARK);
        }
        !is_check
    })
    .collect()
}

#[test]
fn the_guides_cluster() {
    let _modules = with_modules();
    let mut guide = Guide::prepare().unwrap();
    guide
        .node1
        .configure(&with_ipvs(&Settings::of(100)))
        .unwrap();
    guide
        .node2
        .configure(&with_ipvs(&Settings::of(98)))
        .unwrap();
    guide.start_directors().unwrap();
    all_well(&guide);
    let status = guide.node1.status().unwrap();
    assert_eq!(status.data_plane.kind, "ipvs");
    assert_eq!(status.data_plane.choice, "mode = \"ipvs\"");
    assert!(!guide.node1.node.has_xdp().unwrap());

    are_exactly(&guide, [20, 20]);
    let uneven = Settings {
        weights: [1, 3],
        ..Settings::of(100)
    };
    guide.node1.configure(&with_ipvs(&uneven)).unwrap();
    guide.node1.ctl(&["reload"]).unwrap();
    are_exactly(&guide, [10, 30]);
    same_views(&guide.node1);
    same_views(&guide.node2);

    let flows = guide.node1.ctl(&["flows", "--limit", "100"]).unwrap();
    assert!(
        flows.contains("10.1.15.46") && flows.contains("of 80 flows"),
        "{flows}"
    );
    let why = guide
        .node1
        .ctl(&["why", "192.0.2.9:40000", "10.1.15.50:80"])
        .unwrap();
    assert!(
        why.contains("wrr chooses among 10.1.15.45 (weight 1), 10.1.15.46 (weight 3)"),
        "{why}"
    );

    // Somebody else empties the table. Checks of the VIP fail meanwhile, and what that changes hides nothing.
    guide.node1.node.run("ipvsadm", &["-C"]).unwrap();
    wait::until_true("the table is repaired", Duration::from_secs(10), || {
        Ok(guide.node1.status()?.data_plane.repairs.count >= 3)
    })
    .unwrap();
    are_exactly(&guide, [10, 30]);
    assert!(guide.node1.log().contains("somebody else changed IPVS"));
    let text = guide.node1.ctl(&["status"]).unwrap();
    assert!(text.contains("repaired    "), "{text}");

    guide.rs2.stop().unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "down", "draining"])
        .unwrap();
    are_exactly(&guide, [40, 0]);
    guide.rs1.stop().unwrap();
    guide
        .node1
        .wait_for_backends(&["down", "down", "up"])
        .unwrap();
    let pages = http::get_many(&guide.client, VIP, 10).unwrap();
    assert!(pages.iter().all(|page| page == "sorry"), "{pages:?}");
    same_views(&guide.node1);
    guide.rs1.resume(&guide.lab).unwrap();
    guide.rs2.resume(&guide.lab).unwrap();
    all_well(&guide);
    are_exactly(&guide, [10, 30]);

    survives_failover(&mut guide);
    are_exactly(&guide, [20, 20]);
    let left = guide.node1.node.run("ipvsadm", &["-Ln"]).unwrap();
    assert_eq!(left.lines().count(), 3, "{left}");
    assert_eq!(
        guide.node1.leftovers(&[&VIP.to_string()]).unwrap(),
        Vec::<String>::new()
    );
    guide.node1.start(&guide.lab).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    are_exactly(&guide, [10, 30]);
}

/// Waits until the kernel of a backup knows the connections that are open at the master. Those that were
/// closed lately look open to a backup.
pub fn told_of_connections(master: &Node, backup: &Node) {
    let open = |node: &Node, file: &str| -> anyhow::Result<BTreeSet<String>> {
        let table = node.run("cat", &[file])?;
        let open = table.lines().filter(|line| line.contains("ESTABLISHED"));
        // Protocol, client's address and port.
        let client = |line: &str| {
            line.split_whitespace()
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        };
        Ok(open.map(client).collect())
    };
    wait::until_true("the backup is told", Duration::from_secs(60), || {
        let here = open(master, "/proc/net/ip_vs_conn")?;
        let there = open(backup, "/proc/net/ip_vs_conn_sync")?;
        Ok(!here.is_empty() && here.is_subset(&there))
    })
    .unwrap();
}

/// The kernels share connections as VRRP tells them to: a transfer goes on where the next master is.
fn survives_failover(guide: &mut Guide) {
    let daemon = |director: &Director| director.node.run("ipvsadm", &["-L", "--daemon"]).unwrap();
    let text = daemon(&guide.node1);
    assert!(
        text.starts_with("master sync daemon (mcast=eno16777736, syncid=7"),
        "{text}"
    );
    let text = daemon(&guide.node2);
    assert!(
        text.starts_with("backup sync daemon (mcast=eno16777736, syncid=7"),
        "{text}"
    );
    let backup_only = "/proc/sys/net/ipv4/vs/backup_only";
    let sysctl = |director: &Director| director.node.run("cat", &[backup_only]).unwrap();
    assert_eq!(
        (sysctl(&guide.node1).trim(), sysctl(&guide.node2).trim()),
        ("0", "0")
    );

    let download = Download::start(guide, 6_000_000).unwrap();
    let talking = Drips::start(&guide.client, VIP, 20).unwrap();
    told_of_connections(&guide.node1.node, &guide.node2.node);
    // A kernel tells of a connection some seconds after its third packet; of these lbd tells when it stops.
    let young = Drips::start(&guide.client, VIP, 20).unwrap();
    guide.node1.stop().unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    for drips in [talking, young] {
        let pages = drips.finish().unwrap();
        assert!(pages.iter().all(|page| page.starts_with("rs")), "{pages:?}");
    }
    download.finish().unwrap();
    let text = daemon(&guide.node2);
    assert!(text.starts_with("master sync daemon"), "{text}");
    let text = guide.node2.ctl(&["status"]).unwrap();
    assert!(
        text.contains("sync        the kernel tells of its connections on eno16777736"),
        "{text}"
    );
    assert_eq!(daemon(&guide.node1), "");
}

/// `auto`: NAT needs IPVS; so does an interface without native XDP. Both say why.
#[test]
fn auto_takes_ipvs_where_xdp_cannot_be() {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let inner = lab.node("inner", [10, 1, 15, 45]).unwrap();
    lab.second_network(&node, [172, 20, 0, 1], &inner, [172, 20, 0, 5])
        .unwrap();
    inner.ip(&["link", "set", INTERFACE, "down"]).unwrap();
    inner
        .ip(&["route", "add", "default", "via", "172.20.0.1"])
        .unwrap();
    node.sysctl("ipv4.ip_forward", "1").unwrap();
    node.ip(&["address", "add", &format!("{VIP}/32"), "dev", INTERFACE])
        .unwrap();
    let _page = WebServer::start(&lab, &inner, "inner").unwrap();
    let relay = ["TCP-LISTEN:8080,fork,reuseaddr", "TCP:127.0.0.1:80"];
    let _relay = Process::start(&lab, &inner, "socat", "/usr/bin/socat".as_ref(), &relay).unwrap();

    let nat = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n[[service]]\naddress = \"{VIP}:80\"\nforward = \"nat\"\n\
         [service.check]\ntype = \"tcp\"\ninterval = \"1s\"\n[[service.backend]]\naddress = \"172.20.0.5:8080\"\n"
    );
    let mut director = Director::new(&lab, &node, &nat).unwrap();
    director.start(&lab).unwrap();
    director.wait_for_backends(&["up"]).unwrap();
    let pages = http::get_many(&client, VIP, 10).unwrap();
    assert!(pages.iter().all(|page| page == "inner"), "{pages:?}");
    let status = director.status().unwrap();
    assert_eq!(status.data_plane.kind, "ipvs");
    let choice = &status.data_plane.choice;
    assert!(
        choice.contains("TCP 10.1.15.50:80 needs it: XDP has no `forward` \"nat\""),
        "{choice}"
    );
    wait::until_true("answers are counted", Duration::from_secs(10), || {
        Ok(director.service()?.total.out_packets >= 40)
    })
    .unwrap();
    same_views(&director);
    director.stop().unwrap();

    node.ip(&["link", "add", "br7", "type", "bridge"]).unwrap();
    node.ip(&["link", "set", "br7", "up"]).unwrap();
    let bridge = format!(
        "[dataplane]\ninterfaces = [\"br7\"]\n[[service]]\naddress = \"{VIP}:80\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n"
    );
    let mut director = Director::new(&lab, &node, &bridge).unwrap();
    director.launch(&lab).unwrap();
    // Loading the program that is refused takes its time under emulation.
    let status = wait::until("lbd answers", Duration::from_secs(240), || {
        Ok(director.status().ok())
    })
    .unwrap();
    assert_eq!(status.data_plane.kind, "ipvs");
    let choice = &status.data_plane.choice;
    assert!(choice.contains("br7 refuses native XDP"), "{choice}");
    assert!(
        director
            .ctl(&["status"])
            .unwrap()
            .contains("data plane  ipvs; mode = \"auto\"; native XDP:")
    );
    assert!(
        fs::read_dir(lab.pin_path("node1")).is_err(),
        "no pins are left"
    );
    director.stop().unwrap();
}
