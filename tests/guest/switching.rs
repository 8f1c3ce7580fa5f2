//! XDP is lost while it forwards, IPVS takes over with its connections, and gives them back: by itself,
//! by an operator's order, and where XDP cannot be any more.

mod load;
mod losses;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use lab::{Director, Lab, Node, network::INTERFACE, server::accept_vip, wait};
use lb_common::slow::{MARK, MARK_MASK};
use lb_user::{api::proto::Status, dataplane::ipvs::state_path};

use self::load::{Beats, Load, Odd, outage, server_of};
use crate::with_modules;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 50);
const PORT: u16 = 7000;
/// A service that clients stick to.
const STICKY: u16 = 7001;
const UDP: u16 = 7002;
/// Addresses of clients that stick.
const CLIENTS: [Ipv4Addr; 8] = {
    let mut all = [Ipv4Addr::UNSPECIFIED; 8];
    let mut index = 0;
    while index < 8 {
        all[index] = Ipv4Addr::new(10, 1, 16, 1 + index as u8);
        index += 1;
    }
    all
};
/// Connections that stay open, and requests a second on connections of their own.
const OPEN: u32 = 200;
const RATE: u32 = 200;
/// What loading the program may take under emulation.
const LOADING: Duration = Duration::from_secs(240);
/// A busy machine emulates this guest: the aim, 100 ms, is for real ones.
const OUTAGE: Duration = Duration::from_secs(5);

struct Site {
    lbd: Director,
    client: Node,
    lab: Lab,
}

/// What such a test measures suffers from another one.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn site() -> Site {
    site_of(&config())
}

fn site_of(config: &str) -> Site {
    load::allow_many_sockets();
    let lab = Lab::new().unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    for address in CLIENTS {
        let address = format!("{address}/16");
        client
            .ip(&["address", "add", &address, "dev", INTERFACE])
            .unwrap();
    }
    for (name, last) in [("rs1", 45), ("rs2", 46)] {
        let server = lab.node(name, [10, 1, 15, last]).unwrap();
        accept_vip(&server, &VIP.to_string()).unwrap();
        load::serve(&server, VIP, &[PORT, STICKY], UDP);
    }
    node.sysctl("ipv4.conf.all.rp_filter", "0").unwrap();
    hold_vip(&node);
    let mut lbd = Director::new(&lab, &node, config).unwrap();
    lbd.launch(&lab).unwrap();
    wait::until("lbd answers", LOADING, || Ok(lbd.status().ok())).unwrap();
    wait::until_true(
        "all real servers are found",
        Duration::from_secs(60),
        || {
            let services = lbd.status()?.data_plane.services;
            let mut backends = services.iter().flat_map(|s| &s.backends);
            Ok(backends.all(|b| b.state == "up" || b.weight == 0))
        },
    )
    .unwrap();
    Site { lbd, client, lab }
}

fn hold_vip(node: &Node) {
    node.ip(&["address", "add", &format!("{VIP}/32"), "dev", INTERFACE])
        .unwrap();
}

fn config() -> String {
    let servers: String = ["10.1.15.45", "10.1.15.46"]
        .map(|server| format!("[[service.backend]]\naddress = \"{server}\"\n"))
        .concat();
    let service =
        |port: u16, keys: &str| format!("[[service]]\naddress = \"{VIP}:{port}\"\n{keys}{servers}");
    format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\nflow_slots = 65536\n")
        + &service(PORT, "")
        + &service(STICKY, "persistence_timeout = \"5m\"\n")
        + &service(UDP, "protocol = \"udp\"\n")
}

/// Established connections that the kernel knows.
fn known(node: &Node) -> usize {
    let table = node.run("cat", &["/proc/net/ip_vs_conn"]).unwrap();
    table.matches("ESTABLISHED").count()
}

/// A table with services of the slow path, whose marks change; each in one line with its real server and its connections.
fn without_marks(table: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in table.lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        match (words.first(), lines.last_mut()) {
            (Some(&"->"), Some(service)) => {
                service.push(' ');
                service.push_str(&words.join(" "));
            }
            (Some(&"FWM"), _) => {
                let mark: u32 = words[1].parse().unwrap();
                assert_eq!(mark & MARK_MASK, MARK, "{table}");
                words[1] = "slow";
                lines.push(words.join(" "));
            }
            _ => lines.push(words.join(" ")),
        }
    }
    lines[1..].sort();
    lines.join("\n") + "\n"
}

fn to(port: u16) -> SocketAddr {
    (VIP, port).into()
}

impl Drop for Site {
    /// What lbd has to say, where a test has failed.
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", self.lbd.log());
        }
    }
}

impl Site {
    /// Returns the first status that says so.
    fn wait_for(&self, kind: &str) -> Status {
        let what = format!("{kind} forwards");
        wait::until(&what, Duration::from_secs(120), || {
            let status = self.lbd.status()?;
            Ok((status.data_plane.kind == kind).then_some(status))
        })
        .unwrap_or_else(|error| panic!("{error:?}\n{}", self.lbd.log()))
    }

    /// XDP forwards and the kernel's IPVS is as it was before: with nothing but a slow path, without sync daemons, and
    /// set as it was.
    fn wait_until_ipvs_is_clean(&self, before: &str) {
        wait::until_true("IPVS is as it was", Duration::from_secs(60), || {
            Ok(self.ipvs() == before)
        })
        .unwrap_or_else(|error| panic!("{error:?}: {}\ninstead of\n{before}", self.ipvs()));
    }

    fn ipvs(&self) -> String {
        let node = &self.lbd.node;
        let table = without_marks(&node.run("ipvsadm", &["-Ln"]).unwrap());
        let daemons = node.run("ipvsadm", &["-L", "--daemon"]).unwrap();
        let timeouts = node.run("ipvsadm", &["-L", "--timeout"]).unwrap();
        let settings = "cd /proc/sys/net/ipv4/vs; grep . sloppy_tcp expire_nodest_conn backup_only";
        let settings = node.run("sh", &["-c", settings]).unwrap();
        format!("{table}{daemons}{timeouts}{settings}")
    }

    fn servers(&self) -> Vec<String> {
        let ask = |client: &Ipv4Addr| server_of(&self.client, *client, to(STICKY));
        CLIENTS.iter().map(ask).collect()
    }
}

/// The whole way under load. Connections that were open before stay open, and each request is answered.
#[test]
fn no_connection_breaks() {
    let (_modules, _alone) = (with_modules(), alone());
    let mut site = site();
    let text = site.lbd.ctl(&["status"]).unwrap();
    assert!(
        text.contains("fallback    IPVS takes over when XDP is lost\n"),
        "{text}"
    );
    assert!(
        text.contains("slow path   through IPVS, for 6 real servers; 0 packets\n"),
        "{text}"
    );
    let clean = site.ipvs();
    assert_eq!(clean.matches("FWM slow rr ops").count(), 6, "{clean}");
    assert!(
        clean.contains("sloppy_tcp:1\nexpire_nodest_conn:1\n"),
        "{clean}"
    );
    let load = Load::start(&site.client, to(PORT), OPEN, RATE);
    let beats = Beats::start(&site.client, to(UDP));
    let stick = site.servers();
    wait::until_true("all connections are open", Duration::from_secs(60), || {
        Ok(load.seen.open.load(Ordering::Relaxed) == u64::from(OPEN))
    })
    .unwrap();

    // The kernel knows a connection because of a packet that XDP left to it. The guard lets that through.
    let mut odd = Odd::open(&site.client, to(PORT));
    assert_eq!(known(&site.lbd.node), 1);
    let slow = site.lbd.status().unwrap().data_plane.slow_path.unwrap();
    assert!(slow.packets > 0 && slow.servers == 6, "{slow:?}");

    // Somebody detaches the program; it comes back when its time has come.
    let lost = Instant::now();
    site.lbd.detach_xdp().unwrap();
    let status = site.wait_for("ipvs");
    println!("known after {:.1} s", lost.elapsed().as_secs_f64());
    let reason = "somebody detached the XDP program from eno16777736";
    let problem = format!("IPVS forwards in the place of XDP: {reason}");
    assert!(status.problems.contains(&problem), "{:?}", status.problems);
    let status = status.data_plane;
    assert_eq!(status.choice, reason);
    let switch = status.switching.last.unwrap();
    println!(
        "{} connections given to IPVS within {:.1} ms",
        switch.connections,
        switch.took_us as f64 / 1_000.0
    );
    assert!(switch.connections >= u64::from(OPEN));
    assert!(known(&site.lbd.node) >= OPEN as usize);
    assert_eq!(site.servers(), stick, "clients that stick");
    odd.goes_on();
    println!("with IPVS: {}", load.seen.describe());
    site.wait_for("xdp");
    site.wait_until_ipvs_is_clean(&clean);
    // What the kernel still knew would be bound to real servers of services that are gone, and end at the next switch.
    let forgets = || Ok(known(&site.lbd.node) == 0);
    wait::until_true(
        "the kernel forgets connections",
        Duration::from_secs(10),
        forgets,
    )
    .unwrap();
    odd.goes_on();
    assert!(site.lbd.node.has_xdp().unwrap());
    assert_eq!(site.servers(), stick, "clients that stick");
    let log = site.lbd.log();
    assert!(log.contains(&format!("IPVS forwards: {reason}")), "{log}");
    println!("with XDP again: {}", load.seen.describe());

    // An operator wants the same, where somebody else's sync daemon listens already.
    let node = &site.lbd.node;
    let theirs = ["--start-daemon", "backup", "--mcast-interface", INTERFACE];
    let theirs = [&theirs[..], &["--syncid", "9"]].concat();
    node.run("ipvsadm", &theirs).unwrap();
    odd.goes_on_oddly();
    let text = site.lbd.ctl(&["dataplane", "ipvs"]).unwrap();
    assert!(
        text.contains("ipvs until a reload or a restart; ipvs forwards"),
        "{text}"
    );
    let text = site.lbd.ctl(&["status"]).unwrap();
    assert!(text.contains("ordered     ipvs, by an operator"), "{text}");
    // What the kernel knows by a mark stays while that lasts, nothing else does, and no view shows the mark.
    odd.goes_on();
    let table = node.run("ipvsadm", &["-Ln"]).unwrap();
    assert!(table.contains("10.1.15.50:7000 wrr"), "{table}");
    assert!(table.matches("FWM ").count() <= 1, "{table}");
    assert!(!site.lbd.ctl(&["services"]).unwrap().contains("FWM"));
    assert!(known(node) >= OPEN as usize, "{}", known(node));
    let daemons = node.run("ipvsadm", &["-L", "--daemon"]).unwrap();
    assert!(daemons.starts_with("backup sync daemon"), "{daemons}");
    node.run("ipvsadm", &["--stop-daemon", "backup"]).unwrap();
    assert_eq!(site.servers(), stick, "clients that stick");
    thread::sleep(Duration::from_secs(3));
    site.lbd.ctl(&["reload"]).unwrap();
    assert_eq!(site.lbd.status().unwrap().data_plane.kind, "xdp");
    site.wait_until_ipvs_is_clean(&clean);
    let turns = site.lbd.status().unwrap().data_plane.switching;
    assert_eq!((turns.to_ipvs, turns.to_xdp), (2, 2));

    // One that dies while IPVS forwards is followed by one that begins with XDP.
    site.lbd.ctl(&["dataplane", "ipvs"]).unwrap();
    site.lbd.kill().unwrap();
    site.lbd.launch(&site.lab).unwrap();
    wait::until("lbd answers", LOADING, || Ok(site.lbd.status().ok())).unwrap();
    site.wait_for("xdp");
    site.wait_until_ipvs_is_clean(&clean);
    assert_eq!(site.servers(), stick, "clients that stick");
    let log = site.lbd.log();
    assert!(
        log.contains("took over from the IPVS of an earlier lbd"),
        "{log}"
    );

    // One that dies while XDP forwards left a slow path, and no connections to be taken over; as little as one that
    // dies before IPVS has been told of them.
    site.lbd.kill().unwrap();
    is_being_told(&site);
    site.lbd.launch(&site.lab).unwrap();
    wait::until("lbd answers", LOADING, || Ok(site.lbd.status().ok())).unwrap();
    site.wait_until_ipvs_is_clean(&clean);
    odd.goes_on();
    let log = site.lbd.log();
    let (_, last) = log.rsplit_once("data plane: xdp").unwrap();
    assert!(!last.contains("took over from the IPVS"), "{last}");

    let answered = beats.finish();
    let seen = load.finish();
    println!("at the end: {}", seen.describe());
    let outage = outage(&answered, lost);
    println!(
        "from the loss until IPVS served: {:.0} ms",
        outage.as_secs_f64() * 1_000.0
    );
    assert!(outage < OUTAGE, "{outage:?}");
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!((of(&seen.open), of(&seen.broken)), (u64::from(OPEN), 0));
    assert_eq!(of(&seen.failed), 0, "{}", site.lbd.log());
    assert!(of(&seen.requests) > 1_000 && of(&seen.answers) > 1_000);

    where_xdp_cannot_be(&mut site);
    site.lbd.stop().unwrap();
    let left = site.lbd.node.run("ipvsadm", &["-Ln"]).unwrap();
    assert_eq!(left.lines().count(), 3, "{left}");
}

/// IPVS has a service already, and knows no connection yet.
fn is_being_told(site: &Site) {
    let at = format!("{VIP}:{PORT}");
    let service = ["-A", "-t", &at, "-s", "wrr"];
    site.lbd.node.run("ipvsadm", &service).unwrap();
    let path = state_path(site.lbd.socket());
    let text = fs::read(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let services = state["services"].as_array_mut().unwrap();
    services.push(format!("TCP {at}").into());
    state["telling"] = true.into();
    fs::write(&path, state.to_string()).unwrap();
}

/// Somebody else's program takes the place, and later the interface is one that has no native XDP. IPVS
/// serves, and XDP comes back when it can.
fn where_xdp_cannot_be(site: &mut Site) {
    let node = site.lbd.node.clone();
    let pass = site.lab.pass().to_str().unwrap().to_owned();
    site.lbd.detach_xdp().unwrap();
    node.ip(&["link", "set", "dev", INTERFACE, "xdpdrv", "pinned", &pass])
        .unwrap();
    site.wait_for("ipvs");
    let retries = |site: &Site| {
        let text = site.lbd.ctl(&["status"]).unwrap();
        assert!(
            text.contains("fallback    XDP is tried again in "),
            "{text}"
        );
    };
    retries(site);
    let xdp_is_refused = |site: &Site| {
        let refused = site.lbd.lbctl(&["dataplane", "xdp"]).unwrap();
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(words.contains("another XDP program is attached"), "{words}");
    };
    xdp_is_refused(site);
    retries(site);
    assert_eq!(site.servers().len(), CLIENTS.len());

    // An order that is refused leaves the one before in force: nobody tries again by himself.
    site.lbd.ctl(&["dataplane", "ipvs"]).unwrap();
    xdp_is_refused(site);
    let switching = site.lbd.status().unwrap().data_plane.switching;
    assert_eq!(
        (switching.ordered.as_deref(), switching.retry_in_ms),
        (Some("ipvs"), None)
    );
    site.lbd.ctl(&["dataplane", "auto"]).unwrap();
    retries(site);
    node.ip(&["link", "set", "dev", INTERFACE, "xdp", "off"])
        .unwrap();
    site.wait_for("xdp");

    // A macvlan in the place of the card has its name and no native XDP.
    node.ip(&["link", "set", INTERFACE, "down"]).unwrap();
    node.ip(&["link", "set", INTERFACE, "name", "below0"])
        .unwrap();
    node.ip(&["address", "flush", "dev", "below0"]).unwrap();
    node.ip(&["link", "set", "below0", "up"]).unwrap();
    node.ip(&[
        "link", "add", INTERFACE, "link", "below0", "type", "macvlan", "mode", "bridge",
    ])
    .unwrap();
    node.ip(&["address", "add", "10.1.15.43/16", "dev", INTERFACE])
        .unwrap();
    hold_vip(&node);
    node.ip(&["link", "set", INTERFACE, "up"]).unwrap();
    site.wait_for("ipvs");
    retries(site);
    let choice = site.lbd.status().unwrap().data_plane.choice;
    assert!(
        choice.contains("eno16777736 refuses native XDP"),
        "{choice}"
    );
    // The VIP has moved to another MAC address.
    site.client.ip(&["neigh", "flush", "all"]).unwrap();
    assert_eq!(site.servers().len(), CLIENTS.len());
}
