//! Real traffic in other shapes than the guide's: UDP, a second network, other sorry servers, a
//! director that is a real server, a service that belongs to no instance.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lab::{
    Director, Guide, Lab, Node, Process,
    guide::{self, Settings, VIP},
    http,
    network::INTERFACE,
    server::{WebServer, accept_vip},
    wait,
};
use lb_user::model::VrrpState;

/// Answers every datagram to the VIP with the node's name. One process: socat forks for each, and loses
/// those that come meanwhile.
fn echo(lab: &Lab, node: &Node, port: u16) -> Process {
    let program = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('{VIP}', {port}))\n\
         while True: s.sendto(b'{}', s.recvfrom(2048)[1])",
        node.name
    );
    Process::start(
        lab,
        node,
        "echo",
        "/usr/bin/python3".as_ref(),
        &["-c", &program],
    )
    .unwrap()
}

/// One datagram from a port of its own, and who answered.
fn ask(node: &Node, port: u16) -> Option<String> {
    node.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        // The same flow asks the same server again.
        let mut buffer = [0; 100];
        let (length, from) = (0..4).find_map(|_| {
            socket.send_to(b"who are you?\n", (VIP, port)).unwrap();
            socket.recv_from(&mut buffer).ok()
        })?;
        assert_eq!(from.ip(), VIP, "the answer comes from the VIP");
        Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    })
    .unwrap()
}

#[test]
fn udp_goes_through_xdp() {
    let mut guide = Guide::prepare().unwrap();
    let service = format!(
        "[[service]]\naddress = \"{VIP}:5353\"\nprotocol = \"udp\"\nscheduler = \"rr\"\n\
         [[service.backend]]\naddress = \"10.1.15.45\"\nweight = 3\n[[service.backend]]\naddress = \"10.1.15.46\"\n"
    );
    guide
        .node1
        .configure(&format!("{}\n{service}", guide::config(&Settings::of(100))))
        .unwrap();
    guide.start_directors().unwrap();
    let servers = [guide.rs1.node().clone(), guide.rs2.node().clone()];
    let _echo = servers.each_ref().map(|node| echo(&guide.lab, node, 5353));
    wait::until_true("both echo", Duration::from_secs(20), || {
        Ok((0..4).all(|_| ask(&guide.client, 5353).is_some()))
    })
    .unwrap();
    let answers: Vec<_> = (0..20)
        .map(|_| ask(&guide.client, 5353).unwrap_or_default())
        .collect();
    let count = |name| answers.iter().filter(|a| *a == name).count();
    assert_eq!(
        (count("rs1"), count("rs2")),
        (10, 10),
        "rr ignores weights: {answers:?}"
    );
    let status = guide.node1.status().unwrap();
    let udp = status
        .data_plane
        .services
        .iter()
        .find(|s| s.protocol == "UDP")
        .unwrap();
    assert!(udp.backends.iter().map(|b| b.connections).sum::<u64>() >= 24);
}

/// A client, a director with two networks, and a real server on the other one.
fn two_networks(lab: &Lab) -> [Node; 3] {
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let director = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let server = lab.node("rs1", [10, 1, 15, 45]).unwrap();
    lab.second_network(&director, [172, 20, 0, 43], &server, [172, 20, 0, 45])
        .unwrap();
    accept_vip(&server, &VIP.to_string()).unwrap();
    [client, director, server]
}

/// Clients on one network, real servers on another: frames leave by the director's second interface.
#[test]
fn a_backend_behind_another_interface_is_reached_by_redirect() {
    let lab = Lab::new().unwrap();
    let [client, director, server] = two_networks(&lab);
    let page = WebServer::start(&lab, &server, "rs1").unwrap();
    let config = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{}",
        guide::config(&Settings::of(100))
            .replace("address = \"10.1.15.45\"", "address = \"172.20.0.45\"")
            .replace("address = \"10.1.15.46\"", "address = \"172.20.0.46\"")
    );
    let mut lbd = Director::new(&lab, &director, &config).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", VrrpState::Master).unwrap();
    lbd.wait_for_backends(&["up", "down", "draining"]).unwrap();
    let pages = http::get_many(&client, VIP, 20).unwrap();
    assert!(pages.iter().all(|page| page == "rs1"), "{pages:?}");
    let backend = lbd.service().unwrap().backends.remove(0);
    assert_eq!(backend.connections, 20);
    assert!(backend.packets >= 100, "{backend:?}");
    drop(page);
    lbd.stop().unwrap();
}

/// The same by an interface whose driver cannot send what XDP redirects, which would lose the frames: they pass,
/// the status says what to do, and it is noticed when the driver can.
#[test]
fn an_interface_that_cannot_send_redirected_frames_is_told_of() {
    let lab = Lab::new().unwrap();
    let [client, director, server] = two_networks(&lab);
    // A veth sends redirected frames only to an end that has a program.
    lab.without_pass(&server, "eth1").unwrap();
    let _page = WebServer::start(&lab, &server, "rs1").unwrap();
    let config = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n[[service]]\naddress = \"{VIP}:80\"\n\
         [service.check]\ntype = \"tcp\"\ninterval = \"500ms\"\n[[service.backend]]\naddress = \"172.20.0.45\"\n"
    );
    director
        .ip(&["address", "add", &format!("{VIP}/32"), "dev", INTERFACE])
        .unwrap();
    let mut lbd = Director::new(&lab, &director, &config).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for_backends(&["up"]).unwrap();
    let is_told = || {
        Ok(lbd
            .ctl(&["status"])?
            .contains("the driver of interface eth1 cannot send"))
    };
    wait::until_true("the status says so", Duration::from_secs(20), is_told).unwrap();
    let tried = client
        .within(|| http::get(VIP, Duration::from_millis(500)))
        .unwrap();
    assert!(tried.is_err(), "{tried:?}");
    let service = lbd.service().unwrap();
    assert!(
        service
            .reasons
            .iter()
            .any(|(label, count)| label == "no_redirect" && *count > 0),
        "{:?}",
        service.reasons
    );
    lab.with_pass(&server, "eth1").unwrap();
    let is_told = || Ok(!lbd.ctl(&["status"])?.contains("cannot send"));
    wait::until_true("the status is clean", Duration::from_secs(20), is_told).unwrap();
    let pages = http::get_many(&client, VIP, 5).unwrap();
    assert!(pages.iter().all(|page| page == "rs1"), "{pages:?}");
    lbd.stop().unwrap();
}

#[test]
fn a_sorry_server_on_another_host() {
    let mut guide = Guide::prepare().unwrap();
    let config = guide::config(&Settings::of(100));
    let second = "[[service.backend]]\naddress = \"10.1.15.46\"\nweight = 1\n";
    assert!(config.contains(second));
    let config = config
        .replace(second, "")
        .replace("sorry_server = \"local\"", "sorry_server = \"10.1.15.46\"");
    guide.node1.configure(&config).unwrap();
    guide.start_directors().unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 4).unwrap(), ["rs1"; 4]);
    guide.rs1.stop().unwrap();
    guide.node1.wait_for_backends(&["down", "up"]).unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 4).unwrap(), ["rs2"; 4]);
    guide.rs1.resume(&guide.lab).unwrap();
    guide.node1.wait_for_backends(&["up", "draining"]).unwrap();
    assert_eq!(http::get_many(&guide.client, VIP, 4).unwrap(), ["rs1"; 4]);
}

/// The master is one of its own real servers: its share stays in its stack.
#[test]
fn a_director_that_is_a_real_server() {
    let mut guide = Guide::prepare().unwrap();
    let config = guide::config(&Settings::of(100)).replace("10.1.15.46", "10.1.15.43");
    guide.node1.configure(&config).unwrap();
    guide.start_directors().unwrap();
    let pages = http::get_many(&guide.client, VIP, 20).unwrap();
    let count = |name| pages.iter().filter(|p| *p == name).count();
    assert_eq!((count("rs1"), count("sorry")), (10, 10), "{pages:?}");
    assert!(guide.node1.passed("local").unwrap() > 0);
}

/// A VIP that no instance holds is served at once, by whoever has it.
#[test]
fn a_service_without_an_instance_is_always_served() {
    let guide = {
        let mut guide = Guide::prepare().unwrap();
        let config = guide::config(&Settings::of(100));
        let service = &config[config.find("[[service]]").unwrap()..];
        let own = format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{service}");
        guide.node1.configure(&own).unwrap();
        guide.node1.start(&guide.lab).unwrap();
        guide
    };
    let address = format!("{VIP}/32");
    guide
        .node1
        .node
        .ip(&["address", "add", &address, "dev", INTERFACE])
        .unwrap();
    let pages = http::get_many(&guide.client, VIP, 20).unwrap();
    let count = |name| pages.iter().filter(|p| *p == name).count();
    assert_eq!((count("rs1"), count("rs2")), (10, 10), "{pages:?}");
}

/// The owner of an address keeps it, also after lbd has stopped.
#[test]
fn an_owner_keeps_its_address() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 50]).unwrap();
    let mut lbd = Director::new(&lab, &node, &guide::config(&Settings::of(255))).unwrap();
    let before = node.addresses().unwrap();
    lbd.start(&lab).unwrap();
    wait::until_true("MASTER at once", Duration::from_millis(700), || {
        Ok(lbd.state("VI_1")? == VrrpState::Master)
    })
    .unwrap();
    assert_eq!(node.addresses().unwrap(), before);
    node.cable(false).unwrap();
    lbd.wait_for("VI_1", VrrpState::Fault).unwrap();
    assert_eq!(node.addresses().unwrap(), before);
    node.cable(true).unwrap();
    lbd.wait_for("VI_1", VrrpState::Master).unwrap();
    lbd.stop().unwrap();
    assert_eq!(node.addresses().unwrap(), before);
}

/// A real server gets another MAC address, five times, while datagrams flow; tcpdump at the real server sees when the
/// first frame for each arrives.
#[test]
fn a_changed_mac_address_is_followed_under_traffic() {
    let mut guide = Guide::prepare().unwrap();
    let service = format!(
        "[[service]]\naddress = \"{VIP}:5353\"\nprotocol = \"udp\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n"
    );
    let config = format!("{}\n{service}", guide::config(&Settings::of(100)));
    guide.node1.configure(&config).unwrap();
    guide.start_directors().unwrap();
    let arguments = [
        "-l", "-n", "-e", "-tt", "-i", INTERFACE, "udp", "port", "5353",
    ];
    let dump = Process::start(
        &guide.lab,
        guide.rs1.node(),
        "tcpdump",
        "/usr/bin/tcpdump".as_ref(),
        &arguments,
    )
    .unwrap();
    let ended = AtomicBool::new(false);
    let send = || {
        let sent = guide.client.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            while !ended.load(Ordering::Relaxed) {
                socket.send_to(b"x", (VIP, 5353)).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        sent.unwrap();
    };
    let follow = |new: &str| {
        let replace = [
            "neigh",
            "replace",
            "10.1.15.45",
            "lladdr",
            new,
            "dev",
            INTERFACE,
        ];
        guide.node1.node.ip(&replace)?;
        let changed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let first = || {
            Ok(dump
                .log()
                .lines()
                .find(|l| l.contains(new))
                .map(str::to_owned))
        };
        let line = wait::until("tcpdump sees it", Duration::from_secs(5), first)?;
        let seen: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
        anyhow::Ok((seen - changed.as_secs_f64()) * 1000.0)
    };
    let took = std::thread::scope(|scope| {
        let traffic = scope.spawn(send);
        let arrives = || Ok(dump.log().contains("5353"));
        let took =
            wait::until_true("datagrams arrive", Duration::from_secs(10), arrives).and_then(|()| {
                let addresses = (1..=5).map(|number| format!("02:aa:bb:cc:dd:0{number}"));
                addresses
                    .map(|new| follow(&new))
                    .collect::<anyhow::Result<Vec<f64>>>()
            });
        ended.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
        took
    });
    let mut took = took.unwrap();
    took.sort_by(f64::total_cmp);
    println!(
        "milliseconds from the kernel's entry to the first frame for the new address: {took:.1?}"
    );
    assert!(took[2] <= 50.0 && took[4] < 1_000.0, "{took:?}");
}

/// The kernel forgets whom nobody asks for, and packets that XDP forwards ask nobody: the daemon has the kernel verify
/// its real servers, and resolve one that was forgotten.
#[test]
fn neighbours_are_kept_fresh() {
    let mut guide = Guide::prepare().unwrap();
    let config = format!(
        "[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n[[service]]\naddress = \"{VIP}:80\"\n[[service.backend]]\naddress = \"10.1.15.45\"\n"
    );
    let node = guide.node1.node.clone();
    node.ip(&["address", "add", &format!("{VIP}/32"), "dev", INTERFACE])
        .unwrap();
    guide.node1.configure(&config).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    let entry = || node.ip(&["neigh", "show", "10.1.15.45", "dev", INTERFACE]);
    let is_verified = || {
        let is = || Ok(entry()?.contains("REACHABLE"));
        wait::until_true("verified", Duration::from_secs(40), is).unwrap();
    };
    for _ in 0..2 {
        is_verified();
        let stale = [
            "neigh",
            "change",
            "10.1.15.45",
            "dev",
            INTERFACE,
            "nud",
            "stale",
        ];
        node.ip(&stale).unwrap();
        assert!(entry().unwrap().contains("STALE"));
    }
    is_verified();
    assert_eq!(http::get_many(&guide.client, VIP, 5).unwrap(), ["rs1"; 5]);
    node.ip(&["neigh", "delete", "10.1.15.45", "dev", INTERFACE])
        .unwrap();
    let serves = || Ok(http::get_many(&guide.client, VIP, 5)? == ["rs1"; 5]);
    wait::until_true("found again", Duration::from_secs(10), serves).unwrap();
}
