//! A pair of which one director forwards with XDP and the other with the kernel's IPVS: by `mh` and `sh` every
//! client keeps its real server when the pair fails over, either way, and so do connections that are open.

use std::{collections::BTreeMap, time::Duration};

use lab::{
    Director, Download, Guide, Lab,
    guide::{self, Settings, VIP},
    network::INTERFACE,
    wait,
};
use lb_user::model::VrrpState;

use crate::with_modules;

/// What loading the program may take under emulation.
const LOADING: Duration = Duration::from_secs(240);
/// Clients, each with an address of its own.
const CLIENTS: u8 = 16;
/// Bytes of a download that outlasts an election.
const LENGTH: usize = 6_000_000;

fn config(mode: &str, priority: u8, scheduler: &str) -> String {
    let settings = Settings {
        weights: [1, 2],
        ..Settings::of(priority)
    };
    let text = guide::config(&settings).replace("\"wrr\"", &format!("\"{scheduler}\""));
    format!(
        "[dataplane]\nmode = \"{mode}\"\ninterfaces = [\"{INTERFACE}\"]\nflow_slots = 65536\n{text}"
    )
}

fn start(lab: &Lab, director: &mut Director) {
    director.launch(lab).unwrap();
    wait::until("lbd answers", LOADING, || Ok(director.status().ok())).unwrap();
    director
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
}

/// Which real server answers each client.
fn answers(guide: &Guide) -> BTreeMap<u8, String> {
    let ask = |last: u8| {
        let (own, url) = (format!("10.1.16.{last}"), format!("http://{VIP}/"));
        let arguments = ["--silent", "--show-error", "--fail", "--max-time", "20"];
        let words = [&arguments[..], &["--interface", &own, &url]].concat();
        let page = guide.client.run("curl", &words).unwrap();
        (last, page.trim().to_owned())
    };
    (1..=CLIENTS).map(ask).collect()
}

/// A download whose connection a director forwards.
fn download(guide: &Guide, master: &Director, length: usize) -> Download {
    let download = Download::start(guide, length).unwrap();
    wait::until_true("the download has begun", Duration::from_secs(30), || {
        let flows = master.ctl(&["flows", "--client", "10.1.15.1"])?;
        Ok(flows.contains("established"))
    })
    .unwrap();
    download
}

fn goes_on(guide: &Guide, download: Download) {
    if let Err(error) = download.finish() {
        let shown = [&guide.node1, &guide.node2].map(|director| {
            let table = director.node.run("cat", &["/proc/net/ip_vs_conn"]);
            let sloppy = director
                .node
                .run("cat", &["/proc/sys/net/ipv4/vs/sloppy_tcp"]);
            let flows = director.ctl(&["flows"]);
            format!("{table:?}\n{sloppy:?}\n{flows:?}\n{}\n", director.log())
        });
        panic!("{error:?}\n{}", shown.concat());
    }
}

#[test]
fn every_client_keeps_its_server() {
    let _modules = with_modules();
    let mut guide = Guide::prepare().unwrap();
    for last in 1..=CLIENTS {
        let address = format!("10.1.16.{last}/16");
        guide
            .client
            .ip(&["address", "add", &address, "dev", INTERFACE])
            .unwrap();
    }
    let configure = |guide: &Guide, scheduler: &str| {
        let xdp = config("xdp", 100, scheduler);
        guide.node1.configure(&xdp).unwrap();
        let ipvs = config("ipvs", 98, scheduler);
        guide.node2.configure(&ipvs).unwrap();
    };
    configure(&guide, "mh");
    start(&guide.lab, &mut guide.node1);
    start(&guide.lab, &mut guide.node2);
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
    let kind = |director: &Director| director.status().unwrap().data_plane.kind;
    assert_eq!(kind(&guide.node2), "ipvs");
    assert!(guide.node1.node.has_xdp().unwrap() && kind(&guide.node1) == "xdp");
    let by_xdp = answers(&guide);
    let servers: std::collections::BTreeSet<_> = by_xdp.values().collect();
    assert_eq!(servers.len(), 2, "{by_xdp:?}");

    // XDP to IPVS, and back.
    let running = download(&guide, &guide.node1, LENGTH);
    guide.node1.stop().unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    assert_eq!(answers(&guide), by_xdp);
    goes_on(&guide, running);
    let running = download(&guide, &guide.node2, 3 * LENGTH);
    start(&guide.lab, &mut guide.node1);
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
    assert_eq!(answers(&guide), by_xdp);
    goes_on(&guide, running);

    // Another scheduler; the one that IPVS chose while it was master stays the one of XDP.
    configure(&guide, "sh");
    guide.node1.ctl(&["reload"]).unwrap();
    guide.node2.ctl(&["reload"]).unwrap();
    let by_xdp = answers(&guide);
    guide.node1.node.cable(false).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    assert_eq!(answers(&guide), by_xdp);
    guide.node1.node.cable(true).unwrap();
    guide.node1.wait_for("VI_1", VrrpState::Master).unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Backup).unwrap();
    assert_eq!(answers(&guide), by_xdp);

    // One of them dies: both move its clients, and only those.
    guide.rs1.stop().unwrap();
    for director in [&guide.node1, &guide.node2] {
        director
            .wait_for_backends(&["down", "up", "draining"])
            .unwrap();
    }
    assert!(answers(&guide).values().all(|page| page == "rs2"));
    guide.rs1.resume(&guide.lab).unwrap();
    for director in [&guide.node1, &guide.node2] {
        director
            .wait_for_backends(&["up", "up", "draining"])
            .unwrap();
    }
    assert_eq!(answers(&guide), by_xdp);
    guide.node1.stop().unwrap();
    guide.node2.wait_for("VI_1", VrrpState::Master).unwrap();
    assert_eq!(answers(&guide), by_xdp);
    guide.node2.stop().unwrap();
}
