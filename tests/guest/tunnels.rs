//! Tunnels that IPVS alone has: GUE and GRE, taken apart by a real server's own kernel. Health checks go
//! through them too, so a real server is up when its tunnel works and not before.

use std::{process::Command, time::Duration};

use lab::{
    Director, Lab, Node, http,
    network::{INTERFACE, run},
    server::{WebServer, accept_vip},
    wait,
};

use crate::{cluster::same_views, with_modules};

const LIMIT: Duration = Duration::from_secs(60);
/// Of a GRE device that takes packets with checksums, and no others.
const CHECKED: &str = "10.1.15.46";
/// VIP, address of the real server, keys of the tunnel, and what ipvsadm says of them.
const TUNNELS: [(&str, &str, &str, &str); 5] = [
    (
        "10.1.15.51",
        "10.1.15.45",
        "tunnel_type = \"gue\"\ntunnel_port = 6080",
        "--tun-type gue --tun-port 6080 --tun-nocsum",
    ),
    (
        "10.1.15.52",
        "10.1.15.45",
        "tunnel_type = \"gue\"\ntunnel_port = 6080\ntunnel_checksum = \"csum\"",
        "--tun-type gue --tun-port 6080 --tun-csum",
    ),
    (
        "10.1.15.53",
        "10.1.15.45",
        "tunnel_type = \"gue\"\ntunnel_port = 6080\ntunnel_checksum = \"remcsum\"",
        "--tun-type gue --tun-port 6080 --tun-remcsum",
    ),
    (
        "10.1.15.54",
        "10.1.15.45",
        "tunnel_type = \"gre\"",
        "--tun-type gre --tun-nocsum",
    ),
    (
        "10.1.15.55",
        CHECKED,
        "tunnel_type = \"gre\"\ntunnel_checksum = \"csum\"",
        "--tun-type gre --tun-csum",
    ),
];

fn config() -> String {
    let mut text = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n");
    for (vip, server, keys, _) in TUNNELS {
        text += &format!(
            "[[service]]\naddress = \"{vip}:80\"\nforward = \"tunnel\"\n{keys}\n\
             [service.check]\ntype = \"tcp\"\ninterval = \"1s\"\n[[service.backend]]\naddress = \"{server}\"\n"
        );
    }
    text
}

/// A real server that takes GRE, and GUE when it is told to.
fn server(lab: &Lab) -> Node {
    let server = lab.node("rs1", [10, 1, 15, 45]).unwrap();
    let ip = |words: &str| server.ip(&words.split(' ').collect::<Vec<_>>()).unwrap();
    ip(&format!("address add {CHECKED}/16 dev {INTERFACE}"));
    ip(&format!("link add checked type gre local {CHECKED} csum"));
    for device in ["tunl0", "gre0", "checked"] {
        ip(&format!("link set {device} up"));
        server
            .sysctl(&format!("ipv4.conf.{device}.rp_filter"), "0")
            .unwrap();
    }
    for (vip, ..) in TUNNELS {
        accept_vip(&server, vip).unwrap();
    }
    server
}

#[test]
fn gue_and_gre() {
    let _modules = with_modules();
    for module in ["ipip", "fou", "ip_gre"] {
        run(Command::new("modprobe").arg(module)).unwrap();
    }
    let lab = Lab::new().unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let server = server(&lab);
    for (vip, ..) in TUNNELS {
        let address = format!("{vip}/32");
        node.ip(&["address", "add", &address, "dev", INTERFACE])
            .unwrap();
    }
    let _page = WebServer::start(&lab, &server, "rs1").unwrap();
    let mut lbd = Director::new(&lab, &node, &config()).unwrap();
    lbd.start(&lab).unwrap();
    let status = lbd.status().unwrap();
    assert_eq!(status.data_plane.kind, "ipvs");
    let choice = &status.data_plane.choice;
    assert!(
        choice.contains("XDP has no `tunnel_type` \"gue\""),
        "{choice}"
    );
    // In the order of the file: nobody takes GUE yet.
    let are_up = |expected: [bool; TUNNELS.len()]| {
        let mut seen = Vec::new();
        let same = wait::until_true("real servers are up", LIMIT, || {
            let services = lbd.status()?.data_plane.services;
            let states = services.iter().map(|s| s.backends[0].state.as_str());
            seen = states.map(str::to_owned).collect();
            let wanted = expected.map(|up| if up { "up" } else { "down" });
            Ok(seen == wanted)
        });
        assert!(same.is_ok(), "{seen:?} instead of {expected:?}");
    };
    are_up([false, false, false, true, true]);
    server.ip(&["fou", "add", "port", "6080", "gue"]).unwrap();
    are_up([true; TUNNELS.len()]);
    for (vip, ..) in TUNNELS {
        let pages = http::get_many(&client, vip.parse().unwrap(), 10);
        let pages = pages.unwrap_or_else(|error| panic!("{vip}: {error:?}"));
        assert!(pages.iter().all(|page| page == "rs1"), "{vip}: {pages:?}");
    }
    let saved = node.run("ipvsadm", &["-Sn"]).unwrap();
    for (vip, server, _, words) in TUNNELS {
        let line = format!("-a -t {vip}:80 -r {server}:80 -i -w 1 {words}\n");
        assert!(saved.contains(&line), "{line}{saved}");
    }
    same_views(&lbd);
    lbd.stop().unwrap();
    assert_eq!(node.run("ipvsadm", &["-Sn"]).unwrap(), "");
}
