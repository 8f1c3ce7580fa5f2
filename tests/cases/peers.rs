//! Elections with keepalived and FRR, in every dialect, each in both roles: start, stop, kill, a
//! silent cut, the heal, preemption. Nobody may find fault with the other's adverts.

use std::{net::IpAddr, time::Duration};

use lab::{
    Director, Lab, Node, Process,
    network::INTERFACE,
    peer::{self, Frr, complaints},
    wait,
};
use lb_user::model::VrrpState;
use nix::sys::signal::Signal;

/// What one pair speaks.
struct Dialect {
    /// Lines of lbd's instance.
    ours: &'static str,
    /// Lines of keepalived's `global_defs`.
    global: &'static str,
    /// Lines of keepalived's instance.
    theirs: &'static str,
    /// Virtual addresses, in advert order.
    addresses: &'static [&'static str],
    /// Complaints that keepalived may have before lbd has heard how it computes checksums.
    settling: usize,
    /// Within this a silent master is replaced: three intervals, the skew, and what a busy machine
    /// needs.
    patience: Duration,
}

const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(7);

struct Pair {
    lbd: Director,
    other: Node,
    lab: Lab,
}

impl Pair {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let node1 = lab.node("node1", [10, 1, 15, 43]).unwrap();
        let other = lab.node("node2", [10, 1, 15, 44]).unwrap();
        for (node, last) in [(&node1, 43), (&other, 44)] {
            let address = format!("fe80::{last}/64");
            node.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])
                .unwrap();
            let own = format!("2001:db8::{last}/64");
            node.ip(&["address", "add", &own, "dev", INTERFACE, "nodad"])
                .unwrap();
        }
        let lbd = Director::new(&lab, &node1, "").unwrap();
        Self { lbd, other, lab }
    }

    fn configure(&self, dialect: &Dialect, priority: u8) {
        let addresses = quoted(dialect.addresses);
        let text = format!(
            "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 20\n\
             priority = {priority}\naddresses = [{addresses}]\n{}",
            dialect.ours
        );
        self.lbd.configure(&text).unwrap();
    }

    fn keepalived(&self, dialect: &Dialect, priority: u8) -> Process {
        let addresses = dialect.addresses.join("\n    ");
        let instance = format!(
            "vrrp_instance VI_1 {{\n  state BACKUP\n  interface {INTERFACE}\n  virtual_router_id 20\n  \
             priority {priority}\n{}\n  virtual_ipaddress {{\n    {addresses}\n  }}\n}}\n",
            dialect.theirs
        );
        peer::keepalived(&self.lab, &self.other, dialect.global, &instance).unwrap()
    }

    /// Waits until lbd is master and the other is not, or the reverse; then looks for a while
    /// whether it stays so.
    fn settles(&self, dialect: &Dialect, lbd_is_master: bool, what: &str) {
        let vip: IpAddr = last_address(dialect);
        let as_expected = || {
            let state = self.lbd.state("VI_1")?;
            let wanted = match lbd_is_master {
                true => VrrpState::Master,
                false => VrrpState::Backup,
            };
            Ok(state == wanted
                && holds(&self.lbd.node, vip)? == lbd_is_master
                && holds(&self.other, vip)? != lbd_is_master)
        };
        wait::until_true(what, dialect.patience + Duration::from_secs(8), as_expected)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.lbd.log()));
        std::thread::sleep(dialect.patience / 2);
        assert!(as_expected().unwrap(), "{what}: it does not last");
    }

    fn rejected(&self) -> Vec<(String, u64)> {
        self.lbd.status().unwrap().instances[0].rejected.clone()
    }
}

fn quoted(list: &[&str]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| format!("\"{item}\"")).collect();
    quoted.join(", ")
}

fn last_address(dialect: &Dialect) -> IpAddr {
    let prefix = dialect.addresses.last().unwrap();
    prefix.split('/').next().unwrap().parse().unwrap()
}

fn holds(node: &Node, address: IpAddr) -> anyhow::Result<bool> {
    let text = node.ip(&["-json", "address", "show", "dev", INTERFACE])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let address = address.to_string();
    let list = links[0]["addr_info"].as_array().cloned();
    Ok(list
        .unwrap_or_default()
        .iter()
        .any(|a| a["local"] == address.as_str()))
}

fn with_keepalived(dialect: &Dialect) {
    let mut pair = Pair::new();
    pair.configure(dialect, 150);
    pair.lbd.start(&pair.lab).unwrap();
    let first = pair.keepalived(dialect, 100);
    pair.settles(dialect, true, "lbd has the higher priority");
    pair.lbd.stop().unwrap();
    wait::until_true("keepalived follows a stop", dialect.patience, || {
        holds(&pair.other, last_address(dialect))
    })
    .unwrap();
    pair.lbd.start(&pair.lab).unwrap();
    pair.settles(dialect, true, "lbd preempts");
    let mut log = first.log();
    assert_eq!(pair.rejected(), [], "with lbd as master");
    first.stop().unwrap();

    pair.configure(dialect, 50);
    pair.lbd.ctl(&["reload"]).unwrap();
    let mut second = pair.keepalived(dialect, 100);
    pair.settles(dialect, false, "keepalived has the higher priority");
    pair.other.silently(false).unwrap();
    let ours = || Ok(pair.lbd.state("VI_1")? == VrrpState::Master);
    wait::until_true("lbd replaces a silent master", dialect.patience, ours).unwrap();
    pair.other.silently(true).unwrap();
    pair.settles(dialect, false, "lbd yields when the partition heals");
    second.signal(Signal::SIGKILL).unwrap();
    second.wait(Duration::from_secs(5)).unwrap();
    wait::until_true("lbd replaces a dead master", dialect.patience, ours).unwrap();
    log += &second.log();
    let found = complaints(&log);
    assert!(found.len() <= dialect.settling, "{found:#?}");
    assert_eq!(pair.rejected(), [], "with keepalived as master");
}

#[test]
fn keepalived_version_2_with_authentication_headers() {
    with_keepalived(&Dialect {
        ours: "authentication = \"ah\"\npassword = \"6b8a916c\"\n",
        global: "",
        theirs: "  advert_int 1\n  authentication {\n    auth_type AH\n    auth_pass 6b8a916c\n  }",
        addresses: &["10.1.15.50/16"],
        settling: 0,
        patience: LONG,
    });
}

#[test]
fn keepalived_version_2_to_peers() {
    with_keepalived(&Dialect {
        ours: "unicast_peers = [\"10.1.15.44\"]\npassword = \"secret\"\n",
        global: "",
        theirs: "  advert_int 1\n  unicast_src_ip 10.1.15.44\n  unicast_peer {\n    10.1.15.43\n  }\n  \
                 authentication {\n    auth_type PASS\n    auth_pass secret\n  }",
        addresses: &["10.1.15.50/16", "10.1.15.51/16"],
        settling: 0,
        patience: LONG,
    });
}

#[test]
fn keepalived_version_3() {
    with_keepalived(&Dialect {
        ours: "version = 3\nadvert_interval = \"100ms\"\nchecksum = \"pseudo-header\"\n",
        global: "  vrrp_version 3",
        theirs: "  advert_int 0.1",
        addresses: &["10.1.15.50/16"],
        settling: 0,
        patience: SHORT,
    });
}

#[test]
fn keepalived_version_3_to_peers() {
    with_keepalived(&Dialect {
        ours: "version = 3\nadvert_interval = \"100ms\"\nunicast_peers = [\"10.1.15.44\"]\n",
        global: "  vrrp_version 3",
        theirs: "  advert_int 0.1\n  unicast_src_ip 10.1.15.44\n  unicast_peer {\n    10.1.15.43\n  }",
        addresses: &["10.1.15.50/16"],
        settling: 8,
        patience: SHORT,
    });
}

#[test]
fn keepalived_version_3_over_ipv6() {
    with_keepalived(&Dialect {
        ours: "advert_interval = \"100ms\"\n",
        global: "  vrrp_version 3",
        theirs: "  advert_int 0.1",
        addresses: &["fe80::50/64", "2001:db8::50/64"],
        settling: 0,
        patience: SHORT,
    });
}

#[test]
fn keepalived_version_3_over_ipv6_to_peers() {
    with_keepalived(&Dialect {
        ours: "advert_interval = \"100ms\"\nunicast_peers = [\"2001:db8::44\"]\nsource_address = \"2001:db8::43\"\n",
        global: "  vrrp_version 3",
        theirs: "  advert_int 0.1\n  unicast_src_ip 2001:db8::44\n  unicast_peer {\n    2001:db8::43\n  }",
        addresses: &["2001:db8::50/64"],
        settling: 0,
        patience: SHORT,
    });
}

/// FRR speaks from a macvlan with the virtual MAC.
fn with_frr(
    ours: &'static str,
    addresses: &'static [&'static str],
    router: &[&str],
    interval: &str,
) {
    let dialect = Dialect {
        ours,
        global: "",
        theirs: "",
        addresses,
        settling: 0,
        patience: LONG,
    };
    let vip = last_address(&dialect).to_string();
    let mut pair = Pair::new();
    pair.configure(&dialect, 150);
    pair.lbd.start(&pair.lab).unwrap();
    let lines = [&[interval, "priority 100"], router].concat();
    let mut frr = Frr::start(&pair.lab, &pair.other, 20, &vip, &lines).unwrap();
    let family = if vip.contains(':') { "v6" } else { "v4" };
    let state = |frr: &Frr| -> anyhow::Result<String> {
        let shown = frr.show()?;
        Ok(shown[family]["status"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    let settles = |pair: &Pair, frr: &Frr, lbd: VrrpState, theirs: &str, what: &str| {
        let as_expected = || Ok(pair.lbd.state("VI_1")? == lbd && state(frr)? == theirs);
        wait::until_true(what, Duration::from_secs(15), as_expected).unwrap_or_else(|error| {
            panic!(
                "{error}\n{}\n{:#}",
                pair.lbd.log(),
                frr.show().unwrap_or_default()
            )
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(as_expected().unwrap(), "{what}: it does not last");
    };
    let (master, backup) = (VrrpState::Master, VrrpState::Backup);
    settles(&pair, &frr, master, "Backup", "lbd has the higher priority");
    pair.lbd.stop().unwrap();
    wait::until_true("FRR follows a stop", LONG, || Ok(state(&frr)? == "Master")).unwrap();
    pair.lbd.start(&pair.lab).unwrap();
    settles(&pair, &frr, master, "Backup", "lbd preempts");
    assert_eq!(pair.rejected(), [], "with lbd as master");
    pair.configure(&dialect, 50);
    pair.lbd.ctl(&["reload"]).unwrap();
    settles(&pair, &frr, backup, "Master", "FRR preempts");
    pair.other.silently(false).unwrap();
    let ours = || Ok(pair.lbd.state("VI_1")? == master);
    wait::until_true("lbd replaces a silent master", LONG, ours).unwrap();
    pair.other.silently(true).unwrap();
    settles(&pair, &frr, backup, "Master", "lbd yields after the heal");
    frr.stop().unwrap();
    wait::until_true("lbd follows a stop", LONG, ours).unwrap();
    frr.resume(&pair.lab).unwrap();
    settles(&pair, &frr, backup, "Master", "FRR is back");
    assert_eq!(pair.rejected(), [], "with FRR as master");
}

#[test]
fn frr_version_2() {
    with_frr("", &["10.1.15.50/16"], &["ip 10.1.15.50"], "version 2");
}

#[test]
fn frr_version_3() {
    with_frr(
        "version = 3\nadvert_interval = \"100ms\"\n",
        &["10.1.15.50/16"],
        &["ip 10.1.15.50", "advertisement-interval 100"],
        "version 3",
    );
}

#[test]
fn frr_version_3_over_ipv6() {
    with_frr(
        "advert_interval = \"100ms\"\n",
        // FRR's own link-local address is not among them.
        &["2001:db8::50/64"],
        &["ipv6 2001:db8::50", "advertisement-interval 100"],
        "version 3",
    );
}
