//! Real traffic through devices that the guest's kernel has: VLANs, tunnels, SCTP.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use lab::{
    Director, Lab, Node,
    network::{INTERFACE, run},
    server::{WebServer, accept_vip},
    wait,
};
use socket2::{Domain, Protocol, Socket, Type};

const SCTP_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 50);
const SCTP_VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x60);
const SCTP_PORT: u16 = 9000;
/// The protocol's number (IPPROTO_SCTP).
const SCTP: i32 = 132;
const VLAN_VIP: &str = "10.100.0.50";
/// VIP of each tunnel, the real server's address, and the device that takes the tunnel's packets.
const TUNNELS: [(&str, &str, &str); 4] = [
    ("10.1.15.51", "172.20.0.5", "tunl0"),
    ("10.1.15.52", "2001:db8:20::5", "any6"),
    ("2001:db8::51", "172.20.0.5", "sit0"),
    ("2001:db8::52", "2001:db8:20::5", "any6"),
];
/// Bytes of an upload that fills packets to the brim.
const UPLOAD: usize = 400_000;

struct Site {
    lbd: Director,
    servers: [Node; 2],
    client: Node,
    pages: Vec<WebServer>,
    lab: Lab,
}

/// On one switch: a client, a director, two real servers, and a router to a third one. In VLAN 100
/// are the client and the VIP, in VLAN 200 the way from the director to the real servers.
fn site() -> Site {
    for module in ["8021q", "sctp", "ipip", "sit", "ip6_tunnel"] {
        run(Command::new("modprobe").arg(module)).unwrap();
    }
    let lab = Lab::new().unwrap();
    let node = |name, last| lab.node(name, [10, 1, 15, last]).unwrap();
    let client = node("client", 1);
    let director = node("node1", 43);
    let servers = [node("rs1", 45), node("rs2", 46)];
    let router = node("router", 2);
    let far = node("far", 5);
    // As a network card without VLAN offload: the tag is in the frame that XDP sees.
    lab.on_switch("ethtool", &["-K", "p-node1", "txvlan", "off"])
        .unwrap();
    vlan(&client, "100", "10.100.0.1");
    vlan(&director, "100", "10.100.0.43");
    vlan(&director, "200", "10.200.0.43");
    director
        .ip(&["address", "add", "10.100.0.50/32", "dev", "vlan100"])
        .unwrap();
    for (server, last) in servers.iter().zip([45, 46]) {
        vlan(server, "100", &format!("10.100.0.{last}"));
        vlan(server, "200", &format!("10.200.0.{last}"));
        accept_vip(server, &SCTP_VIP.to_string()).unwrap();
        accept_vip(server, VLAN_VIP).unwrap();
        let own = format!("2001:db8::{last}/64");
        let vip = format!("{SCTP_VIP6}/128");
        for (address, device) in [(own, INTERFACE), (vip, "lo")] {
            server
                .ip(&["-6", "address", "add", &address, "dev", device, "nodad"])
                .unwrap();
        }
    }
    director
        .ip(&["address", "add", "10.1.15.50/32", "dev", INTERFACE])
        .unwrap();
    let vip = format!("{SCTP_VIP6}/128");
    let deprecated = ["nodad", "preferred_lft", "0"];
    director
        .ip(&[&["address", "add", &vip, "dev", INTERFACE], &deprecated[..]].concat())
        .unwrap();
    tunnels(&lab, &client, &director, &router, &far);
    let mut pages = Vec::new();
    for server in servers.iter().chain([&far]) {
        pages.push(WebServer::start(&lab, server, &server.name).unwrap());
    }
    let mut lbd = Director::new(&lab, &director, &config()).unwrap();
    lbd.launch(&lab).unwrap();
    // Loading the program takes its time under emulation.
    wait::until("lbd answers", Duration::from_secs(240), || {
        Ok(lbd.status().ok())
    })
    .unwrap();
    wait::until_true("all real servers are up", Duration::from_secs(60), || {
        let services = lbd.status()?.data_plane.services;
        Ok(services
            .iter()
            .flat_map(|s| &s.backends)
            .all(|b| b.state == "up"))
    })
    .unwrap();
    Site {
        lbd,
        servers,
        client,
        pages,
        lab,
    }
}

/// Joins a VLAN of the switch.
fn vlan(node: &Node, id: &str, address: &str) {
    let device = format!("vlan{id}");
    node.ip(&[
        "link", "add", "link", INTERFACE, "name", &device, "type", "vlan", "id", id,
    ])
    .unwrap();
    node.ip(&["address", "add", &format!("{address}/16"), "dev", &device])
        .unwrap();
    node.ip(&["link", "set", &device, "up"]).unwrap();
    for (key, value) in [("arp_ignore", "1"), ("rp_filter", "0")] {
        node.sysctl(&format!("ipv4.conf.{device}.{key}"), value)
            .unwrap();
    }
}

/// A real server behind a router, with a device for every kind of tunnel.
fn tunnels(lab: &Lab, client: &Node, director: &Node, router: &Node, far: &Node) {
    let v6 = |node: &Node, address: &str, device: &str| {
        node.ip(&["-6", "address", "add", address, "dev", device, "nodad"])
            .unwrap();
    };
    lab.second_network(router, [172, 20, 0, 1], far, [172, 20, 0, 5])
        .unwrap();
    v6(router, "2001:db8:20::1/64", "eth1");
    v6(far, "2001:db8:20::5/64", "eth1");
    v6(router, "2001:db8::2/64", INTERFACE);
    v6(client, "2001:db8::1/64", INTERFACE);
    v6(director, "2001:db8::43/64", INTERFACE);
    for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
        router.sysctl(key, "1").unwrap();
    }
    for node in [client, director] {
        node.ip(&["route", "add", "172.20.0.0/16", "via", "10.1.15.2"])
            .unwrap();
        node.ip(&[
            "-6",
            "route",
            "add",
            "2001:db8:20::/64",
            "via",
            "2001:db8::2",
        ])
        .unwrap();
    }
    // Answers go straight to the client, not through the director.
    far.ip(&["link", "set", INTERFACE, "down"]).unwrap();
    far.ip(&["route", "add", "default", "via", "172.20.0.1"])
        .unwrap();
    far.ip(&["-6", "route", "add", "default", "via", "2001:db8:20::1"])
        .unwrap();
    // The device that is always there takes IPv6 in IPv6 only.
    let local = ["local", "2001:db8:20::5", "remote", "::"];
    let any = ["link", "add", "any6", "type", "ip6tnl", "mode", "any"];
    far.ip(&[&any[..], &local].concat()).unwrap();
    for device in ["tunl0", "sit0", "any6"] {
        far.ip(&["link", "set", device, "up"]).unwrap();
    }
    for device in ["all", "tunl0", "any6"] {
        far.sysctl(&format!("ipv4.conf.{device}.rp_filter"), "0")
            .unwrap();
    }
    for (vip, _, device) in TUNNELS {
        let length = if vip.contains(':') { 128 } else { 32 };
        let address = format!("{vip}/{length}");
        // As VRRP does it: an address that is "deprecated" is no source of the director's own packets.
        let [flags, own_flags]: [&[&str]; 2] = match length {
            32 => [&[], &[]],
            _ => [&["nodad"], &["nodad", "preferred_lft", "0"]],
        };
        far.ip(&[&["address", "add", &address, "dev", device], flags].concat())
            .unwrap();
        director
            .ip(&[&["address", "add", &address, "dev", INTERFACE], own_flags].concat())
            .unwrap();
    }
}

fn config() -> String {
    let check = "[service.check]\ntype = \"http\"\nport = 80\ninterval = \"1s\"\nconnect_timeout = \"3s\"\n";
    let service = |address: &str, keys: &str, servers: &[&str]| {
        let servers: String = servers
            .iter()
            .map(|server| format!("[[service.backend]]\naddress = \"{server}\"\n"))
            .collect();
        format!("[[service]]\naddress = \"{address}\"\n{keys}{check}{servers}")
    };
    let mut text = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\nflow_slots = 65536\n");
    text += &service(
        &format!("{SCTP_VIP}:{SCTP_PORT}"),
        "protocol = \"sctp\"\n",
        &["10.1.15.45", "10.1.15.46"],
    );
    text += &service(
        &format!("[{SCTP_VIP6}]:{SCTP_PORT}"),
        "protocol = \"sctp\"\n",
        &["2001:db8::45", "2001:db8::46"],
    );
    text += &service(
        &format!("{VLAN_VIP}:80"),
        "",
        &["10.200.0.45", "10.200.0.46"],
    );
    for (vip, server, _) in TUNNELS {
        let address = if vip.contains(':') {
            format!("[{vip}]:80")
        } else {
            format!("{vip}:80")
        };
        text += &service(&address, "forward = \"tunnel\"\n", &[server]);
    }
    text
}

/// Answers every message with the server's name.
fn sctp_server(node: &Node, vip: IpAddr) {
    let namespace = node.open().unwrap();
    let name = node.name.clone();
    thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let address = SocketAddr::from((vip, SCTP_PORT));
        let listener = sctp_socket(address);
        listener.bind(&address.into()).unwrap();
        listener.listen(16).unwrap();
        loop {
            let (mut peer, _) = listener.accept().unwrap();
            let mut word = [0; 16];
            while peer.read(&mut word).is_ok_and(|length| length > 0) {
                peer.write_all(name.as_bytes()).unwrap();
            }
        }
    });
}

fn sctp_socket(address: SocketAddr) -> Socket {
    let domain = Domain::for_address(address);
    Socket::new(domain, Type::STREAM, Some(Protocol::from(SCTP))).unwrap()
}

/// Three messages over one association; the name of the server, which is the same each time.
fn sctp_client(vip: IpAddr) -> String {
    let address = SocketAddr::from((vip, SCTP_PORT));
    let mut socket = sctp_socket(address);
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket.connect(&address.into()).unwrap();
    let mut names = Vec::new();
    for _ in 0..3 {
        socket.write_all(b"hello").unwrap();
        let mut name = [0; 16];
        let length = socket.read(&mut name).unwrap();
        names.push(String::from_utf8_lossy(&name[..length]).into_owned());
    }
    assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    names.remove(0)
}

fn shares(pages: &[String]) -> [usize; 2] {
    ["rs1", "rs2"].map(|name| pages.iter().filter(|page| *page == name).count())
}

fn curl(node: &Node, arguments: &[&str]) -> String {
    let common = [
        "--silent",
        "--show-error",
        "--fail",
        "--globoff",
        "--max-time",
        "60",
    ];
    let text = node.run("curl", &[&common, arguments].concat()).unwrap();
    text.trim().to_owned()
}

/// Before Linux 6.6 checks of the VIP need a queueing discipline, which is still there when the next daemon starts.
fn another_daemon(site: &mut Site) {
    site.lbd.stop().unwrap();
    site.lbd.launch(&site.lab).unwrap();
    wait::until("lbd answers", Duration::from_secs(240), || {
        Ok(site.lbd.status().ok())
    })
    .unwrap();
    let log = site.lbd.log();
    assert!(
        !log.contains("clsact") && !log.contains("no way to ask"),
        "{log}"
    );
}

/// The client sends for the VIP in a VLAN that the director is not in, to the right MAC address, as a trunk would
/// carry it past; then the director joins that VLAN.
fn another_vlan(site: &Site) {
    let director = &site.lbd.node;
    let link = director
        .ip(&["-br", "link", "show", "dev", INTERFACE])
        .unwrap();
    // "eno16777736@if7 UP 02:00:00:00:00:43 <...>"
    let mac = link.split_whitespace().nth(2).unwrap();
    vlan(&site.client, "300", "10.30.0.1");
    for arguments in [
        vec!["route", "replace", "10.100.0.50/32", "dev", "vlan300"],
        vec![
            "neighbour",
            "replace",
            VLAN_VIP,
            "lladdr",
            mac,
            "dev",
            "vlan300",
        ],
    ] {
        site.client.ip(&arguments).unwrap();
    }
    let url = format!("http://{VLAN_VIP}/");
    let try_it = || {
        let arguments = ["--silent", "--max-time", "1", &url];
        let _ = site.client.run("curl", &arguments);
        let services = site.lbd.status().unwrap().data_plane.services;
        let service = services
            .into_iter()
            .find(|s| s.address.starts_with(VLAN_VIP));
        let service = service.unwrap();
        let foreign = service
            .reasons
            .iter()
            .find(|(label, _)| label == "foreign_vlan");
        (
            foreign.map_or(0, |(_, count)| *count),
            service.total.connections,
        )
    };
    let (foreign, connections) = try_it();
    assert!(foreign > 0);
    vlan(director, "300", "10.30.0.43");
    wait::until_true(
        "the director is in the VLAN",
        Duration::from_secs(30),
        || Ok(try_it().1 > connections),
    )
    .unwrap();
    site.client.ip(&["link", "delete", "vlan300"]).unwrap();
}

/// One site for all: under emulation, loading the program is most of the work.
#[test]
fn vlans_tunnels_and_sctp() {
    // IPVS stands by.
    let _modules = crate::with_modules();
    let mut site = site();
    for vip in [SCTP_VIP.into(), SCTP_VIP6.into()] {
        for server in &site.servers {
            sctp_server(server, vip);
        }
        thread::sleep(Duration::from_millis(500));
        let names: Vec<String> = site
            .client
            .within(|| (0..10).map(|_| sctp_client(vip)).collect())
            .unwrap();
        assert_eq!(shares(&names), [5, 5], "SCTP {vip}: {names:?}");
    }

    let url = format!("http://{VLAN_VIP}/");
    let pages: Vec<String> = (0..10).map(|_| curl(&site.client, &[&url])).collect();
    assert_eq!(shares(&pages), [5, 5], "VLAN: {pages:?}");
    another_vlan(&site);

    let upload = site.lab.directory().join("upload");
    std::fs::write(&upload, vec![b'x'; UPLOAD]).unwrap();
    let data = format!("@{}", upload.display());
    for (number, (vip, _, _)) in TUNNELS.iter().enumerate() {
        let host = if vip.contains(':') {
            format!("[{vip}]")
        } else {
            (*vip).to_owned()
        };
        assert_eq!(curl(&site.client, &[&format!("http://{host}/")]), "far");
        // The client's first large packets do not fit into the tunnel, and it is told so.
        let url = format!("http://{host}/upload");
        assert_eq!(
            curl(&site.client, &["--data-binary", &data, &url]),
            "stored"
        );
        let stored = site.pages[2].uploads().unwrap();
        assert_eq!(stored.len(), number + 1, "{vip}");
        assert!(stored.iter().all(|bytes| bytes.len() == UPLOAD), "{vip}");
        let services = site.lbd.status().unwrap().data_plane.services;
        let service = services
            .iter()
            .find(|s| s.address.starts_with(&host))
            .unwrap();
        assert!(
            service.reasons.iter().any(|(label, _)| label == "too_big"),
            "{vip}: {:?}",
            service.reasons
        );
    }
    another_daemon(&mut site);
}
