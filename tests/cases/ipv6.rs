//! Real IPv6 traffic, and path MTU discovery of both versions of IP through a router with a narrow
//! link: the router's ICMP errors reach the real server that the VIP hides.

use std::{net::UdpSocket, time::Duration};

use lab::{
    Director, Lab, Node,
    network::INTERFACE,
    server::{WebServer, accept_vip},
    wait,
};

const VIP4: &str = "10.1.15.50";
const VIP6: &str = "2001:db8::50";
const UDP_PORT: u16 = 5353;
/// The narrow link's largest packet: IPv6's smallest is 1,280.
const NARROW: &str = "1300";

struct Site {
    lbd: Director,
    _pages: Vec<WebServer>,
    servers: Vec<Node>,
    client: Node,
    _lab: Lab,
}

fn v6(node: &Node, address: &str, device: &str) {
    node.ip(&["-6", "address", "add", address, "dev", device, "nodad"])
        .unwrap();
}

/// A client behind a router with a narrow link; a director and two real servers on the switch.
fn site() -> Site {
    let lab = Lab::new().unwrap();
    let router = lab.node("router", [10, 1, 15, 1]).unwrap();
    let director = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let servers =
        [("rs1", 45), ("rs2", 46)].map(|(name, last)| lab.node(name, [10, 1, 15, last]).unwrap());
    let client = lab.node("client", [10, 9, 0, 9]).unwrap();
    lab.second_network(&router, [172, 20, 0, 1], &client, [172, 20, 0, 9])
        .unwrap();
    v6(&router, "2001:db8::1/64", INTERFACE);
    v6(&router, "2001:db8:9::1/64", "eth1");
    v6(&client, "2001:db8:9::9/64", "eth1");
    v6(&director, "2001:db8::43/64", INTERFACE);
    for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
        router.sysctl(key, "1").unwrap();
    }
    router.ip(&["link", "set", "eth1", "mtu", NARROW]).unwrap();
    client.ip(&["link", "set", INTERFACE, "down"]).unwrap();
    client
        .ip(&["route", "add", "default", "via", "172.20.0.1"])
        .unwrap();
    client
        .ip(&["-6", "route", "add", "default", "via", "2001:db8:9::1"])
        .unwrap();
    let mut pages = Vec::new();
    for (server, last) in servers.iter().zip([45, 46]) {
        accept_vip(server, VIP4).unwrap();
        v6(server, &format!("2001:db8::{last}/64"), INTERFACE);
        v6(server, &format!("{VIP6}/128"), "lo");
        server
            .ip(&["route", "add", "172.20.0.0/16", "via", "10.1.15.1"])
            .unwrap();
        server
            .ip(&[
                "-6",
                "route",
                "add",
                "2001:db8:9::/64",
                "via",
                "2001:db8::1",
            ])
            .unwrap();
        let page = WebServer::start(&lab, server, &server.name).unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
        page.publish("large", &content).unwrap();
        pages.push(page);
    }
    director
        .ip(&["address", "add", "10.1.15.50/32", "dev", INTERFACE])
        .unwrap();
    v6(&director, &format!("{VIP6}/128"), INTERFACE);
    let service = |vip: &str, servers: [&str; 2]| {
        format!(
            "[[service]]\naddress = \"{vip}:80\"\n[service.check]\ntype = \"http\"\ninterval = \"500ms\"\n\
             [[service.backend]]\naddress = \"{}\"\n[[service.backend]]\naddress = \"{}\"\n",
            servers[0], servers[1]
        )
    };
    let config = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{}{}",
        service(VIP4, ["10.1.15.45", "10.1.15.46"]),
        service(&format!("[{VIP6}]"), ["2001:db8::45", "2001:db8::46"])
    ) + &format!(
        "[[service]]\naddress = \"[{VIP6}]:{UDP_PORT}\"\nprotocol = \"udp\"\n\
         [[service.backend]]\naddress = \"2001:db8::45\"\n[[service.backend]]\naddress = \"2001:db8::46\"\n"
    );
    let mut lbd = Director::new(&lab, &director, &config).unwrap();
    lbd.start(&lab).unwrap();
    wait::until_true("all real servers are up", Duration::from_secs(20), || {
        let services = lbd.status()?.data_plane.services;
        Ok(services
            .iter()
            .flat_map(|s| &s.backends)
            .all(|b| b.state == "up"))
    })
    .unwrap();
    Site {
        lbd,
        _pages: pages,
        servers: servers.to_vec(),
        client,
        _lab: lab,
    }
}

fn fetch(client: &Node, host: &str, path: &str) -> String {
    let url = format!("http://{host}/{path}");
    client
        .run(
            "curl",
            &["--silent", "--fail", "--globoff", "--max-time", "20", &url],
        )
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn ipv6_goes_through_xdp() {
    let site = site();
    let host = format!("[{VIP6}]");
    let pages: Vec<String> = (0..20).map(|_| fetch(&site.client, &host, "")).collect();
    let count = |name| pages.iter().filter(|p| *p == name).count();
    assert_eq!((count("rs1"), count("rs2")), (10, 10), "{pages:?}");
    let services = site.lbd.ctl(&["services"]).unwrap();
    assert!(
        services.contains("TCP  [2001:db8::50]:80 wrr"),
        "{services}"
    );
    assert!(services.contains("-> [2001:db8::45]:80"), "{services}");
    let why = site
        .lbd
        .ctl(&["why", "[2001:db8:9::9]:5", "[2001:db8::50]:80"])
        .unwrap();
    assert!(why.contains("forwarded to 2001:db8::4"), "{why}");
    let flows = site
        .lbd
        .ctl(&["flows", "--client", "2001:db8:9::/64"])
        .unwrap();
    assert!(
        flows.contains("TCP [2001:db8::50]:80") && flows.contains("of 20 flows"),
        "{flows}"
    );
}

/// Answers every datagram to the VIP with the server's name.
fn udp_server(node: &Node) {
    let namespace = node.open().unwrap();
    let name = node.name.clone();
    let (ready, bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind((VIP6, UDP_PORT)).unwrap();
        ready.send(()).unwrap();
        let mut word = [0; 16];
        while let Ok((_, client)) = socket.recv_from(&mut word) {
            socket.send_to(name.as_bytes(), client).unwrap();
        }
    });
    bound.recv().unwrap();
}

#[test]
fn udp_over_ipv6_goes_through_xdp() {
    let site = site();
    site.servers.iter().for_each(udp_server);
    // Each from a port of its own. The same flow asks the same server again.
    let ask = || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let limit = Duration::from_secs(5);
        socket.set_read_timeout(Some(limit)).unwrap();
        let mut name = [0; 16];
        let (length, from) = (0..4).find_map(|_| {
            socket.send_to(b"who?", (VIP6, UDP_PORT)).unwrap();
            socket.recv_from(&mut name).ok()
        })?;
        assert_eq!(from.ip().to_string(), VIP6, "the answer comes from the VIP");
        Some(String::from_utf8_lossy(&name[..length]).into_owned())
    };
    let names: Vec<Option<String>> = site
        .client
        .within(|| (0..20).map(|_| ask()).collect())
        .unwrap();
    let count = |name: &str| names.iter().flatten().filter(|n| *n == name).count();
    assert_eq!((count("rs1"), count("rs2")), (10, 10), "{names:?}");
}

#[test]
fn path_mtu_discovery_reaches_the_real_servers() {
    let site = site();
    let hosts = [VIP4.to_owned(), format!("[{VIP6}]")];
    for (host, client) in hosts.iter().zip(["172.20.0.9", "2001:db8:9::9"]) {
        for _ in 0..2 {
            let url = format!("http://{host}/large");
            let arguments = [
                "--silent",
                "--fail",
                "--globoff",
                "--max-time",
                "20",
                "--write-out",
            ];
            let output = ["%{size_download}", "--output", "/dev/null", &url];
            let size = site
                .client
                .run("curl", &[&arguments[..], &output].concat())
                .unwrap();
            assert_eq!(size, "3000000", "{host}");
        }
        for server in &site.servers {
            let route = server.ip(&["route", "get", client]).unwrap();
            assert!(
                route.contains(&format!("mtu {NARROW}")),
                "{}: {route}",
                server.name
            );
        }
    }
}

/// The director has the VIP itself, and asks for it on the real server all the same.
#[test]
fn checks_ask_for_the_vip_on_the_real_server() {
    let site = site();
    let rs1 = &site.servers[0];
    for (vip, host, prefix) in [(VIP4, "10.1.15.45", "32"), (VIP6, "2001:db8::45", "128")] {
        let state = |up: bool| {
            let what = format!("{host} is {}", if up { "up" } else { "down" });
            wait::until(&what, Duration::from_secs(20), || {
                let checks = site.lbd.status()?.checks;
                Ok(checks.into_iter().find(|c| c.backend == host && c.up == up))
            })
            .unwrap()
        };
        let target = state(true).checks[0].target.clone();
        assert!(
            target.contains(vip) && target.ends_with(&format!(" on {host}")),
            "{target}"
        );
        let address = format!("{vip}/{prefix}");
        rs1.ip(&["address", "del", &address, "dev", "lo"]).unwrap();
        let cause = state(false).cause.unwrap_or_default();
        assert!(cause.contains("on its lo?"), "{cause}");
        rs1.ip(&["address", "add", &address, "dev", "lo"]).unwrap();
        state(true);
    }
}
