//! A service by firewall mark: nftables says which packets, IPVS spreads them, and both ports of a client
//! go to one real server.

use std::time::Duration;

use lab::{
    Director, Lab, Process,
    guide::VIP,
    http,
    network::INTERFACE,
    server::{WebServer, accept_vip},
    wait,
};

use crate::{cluster::same_views, with_modules};

const MARK: &str = "table ip marks {
  chain input {
    type filter hook prerouting priority mangle;
    ip daddr 10.1.15.50 tcp dport { 80, 8080 } meta mark set 7
  }
}
";

/// The page of a port, as `curl` sees it.
fn page(client: &lab::Node, port: u16) -> String {
    let url = format!("http://{VIP}:{port}/");
    let arguments = [
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "10",
        &url,
    ];
    client.run("curl", &arguments).unwrap().trim().to_owned()
}

#[test]
fn a_firewall_says_which_packets() {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    node.ip(&["address", "add", &format!("{VIP}/32"), "dev", INTERFACE])
        .unwrap();
    let mut running = Vec::new();
    for (name, last) in [("rs1", 45), ("rs2", 46)] {
        let server = lab.node(name, [10, 1, 15, last]).unwrap();
        accept_vip(&server, &VIP.to_string()).unwrap();
        let page = WebServer::start(&lab, &server, name).unwrap();
        let relay = ["TCP-LISTEN:8080,fork,reuseaddr", "TCP:127.0.0.1:80"];
        let socat = "/usr/bin/socat".as_ref();
        let relay = Process::start(&lab, &server, "socat", socat, &relay).unwrap();
        running.push((page, relay));
    }
    let rules = lab.directory().join("marks.nft");
    std::fs::write(&rules, MARK).unwrap();
    node.run("nft", &["-f", &rules.display().to_string()])
        .unwrap();

    let config = |keys: &str| {
        let servers: String = [45, 46]
            .map(|last| format!("[[service.backend]]\naddress = \"10.1.15.{last}\"\n"))
            .concat();
        format!(
            "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n[protection]\nblock = [\"192.0.2.0/24\"]\n[[service]]\naddress = \"{VIP}:0\"\n\
             fwmark = 7\nscheduler = \"rr\"\n{keys}[service.check]\ntype = \"http\"\nport = 80\ninterval = \"1s\"\n\
             connect_timeout = \"3s\"\n{servers}"
        )
    };
    let mut director = Director::new(&lab, &node, &config("")).unwrap();
    director.start(&lab).unwrap();
    director.wait_for_backends(&["up", "up"]).unwrap();
    // Only IPVS has marks; and what it has not is not kept quiet.
    let status = director.ctl(&["status"]).unwrap();
    for words in [
        "needs it: XDP has no `fwmark`",
        "[protection] and `new_connections_per_second` are not in force",
    ] {
        assert!(status.contains(words), "{status}");
    }
    let pages = http::get_many(&client, VIP, 10).unwrap();
    let of = |name: &str| pages.iter().filter(|page| *page == name).count();
    assert_eq!((of("rs1"), of("rs2")), (5, 5), "{pages:?}");
    // No other service has that port; the mark has.
    let both: std::collections::BTreeSet<_> = (0..4).map(|_| page(&client, 8080)).collect();
    assert_eq!(both.len(), 2, "{both:?}");
    let listed = director.ctl(&["services"]).unwrap();
    assert!(listed.contains("FWM  7 rr\n"), "{listed}");
    same_views(&director);
    let flows = director.ctl(&["flows", "--limit", "100"]).unwrap();
    assert!(flows.contains("of 14 flows"), "{flows}");

    // With persistence a client's ports stay together.
    director
        .configure(&config("persistence_timeout = \"5m\"\n"))
        .unwrap();
    director.ctl(&["reload"]).unwrap();
    let first = page(&client, 80);
    for port in [8080, 80, 8080, 80] {
        assert_eq!(page(&client, port), first);
    }
    same_views(&director);

    // Without its rule nobody is marked.
    node.run("nft", &["delete", "table", "ip", "marks"])
        .unwrap();
    let url = format!("http://{VIP}:8080/");
    assert!(
        client
            .run("curl", &["--silent", "--max-time", "5", &url])
            .is_err()
    );
    node.run("nft", &["-f", &rules.display().to_string()])
        .unwrap();
    assert_eq!(page(&client, 8080), first);

    // Emptied by somebody else, it is filled again; and a stop leaves nothing.
    node.run("ipvsadm", &["-C"]).unwrap();
    wait::until_true("the table is repaired", Duration::from_secs(20), || {
        Ok(node
            .run("ipvsadm", &["-Ln"])?
            .contains("FWM  7 rr persistent 300"))
    })
    .unwrap();
    director.stop().unwrap();
    let left = node.run("ipvsadm", &["-Ln"]).unwrap();
    assert_eq!(left.lines().count(), 3, "{left}");
}
