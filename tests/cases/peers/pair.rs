//! Everything that can happen to a pair of directors, of which one is lbd.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lab::{Director, Lab, Node, network::INTERFACE, wait};
use lb_user::model::VrrpState::{self, Backup, Master};

use super::{Dialect, Theirs, frr::FrrPeer, keepalived::KeepalivedPeer};

/// The other router.
pub trait Peer {
    /// Starts it with priority 100.
    fn start(&mut self, lab: &Lab);
    /// Ends it; it says so to others.
    fn stop(&mut self);
    /// Ends it outright.
    fn kill(&mut self);
    /// Whether it believes to be master.
    fn is_master(&self) -> bool;
    /// What it has counted or said against adverts that it heard, since it was asked last.
    fn complaints(&mut self) -> Vec<String>;
    /// For a failure's message.
    fn log(&self) -> String;
}

pub struct Pair {
    dialect: Dialect,
    lbd: Director,
    peer: Box<dyn Peer>,
    other: Node,
    lab: Lab,
}

/// The kernel looks through a whole program at each start: a dozen at once, and none is done in time.
static STARTING: Mutex<()> = Mutex::new(());
/// Priority of lbd where it is to be master, and where not; the other's is 100.
const HIGHER: u8 = 150;
const LOWER: u8 = 50;

impl Pair {
    /// The whole life of a pair. Panics where anything is not as it should be.
    pub fn live_through(dialect: &Dialect) {
        let mut pair = Self::new(dialect);
        pair.configure(HIGHER);
        pair.start_lbd();
        pair.peer.start(&pair.lab);
        pair.settles(Master, "lbd has the higher priority");
        pair.our_ends();
        assert_eq!(pair.rejected(), [], "with lbd as master");

        pair.configure(LOWER);
        pair.lbd.ctl(&["reload"]).unwrap();
        pair.settles(Backup, "the peer preempts");
        pair.their_ends();
        assert_eq!(pair.rejected(), [], "with the peer as master");
        pair.look_for_complaints();
    }

    /// lbd is master, and again after each of these.
    fn our_ends(&mut self) {
        self.lbd.stop().unwrap();
        self.peer_takes_over("a stop");
        self.start_lbd();
        self.settles(Master, "lbd is back");

        self.lbd.kill().unwrap();
        self.peer_takes_over("a death");
        self.start_lbd();
        self.settles(Master, "lbd is back from the dead");

        let node = self.lbd.node.clone();
        node.cable(false).unwrap();
        self.peer_takes_over("a port that is down");
        node.cable(true).unwrap();
        self.settles(Master, "lbd's port is up");

        node.silently(false).unwrap();
        self.peer_takes_over("silence");
        node.silently(true).unwrap();
        self.settles(Master, "the partition heals, and the peer yields");
    }

    /// The peer is master, and again after each of these.
    fn their_ends(&mut self) {
        self.look_for_complaints();
        self.peer.stop();
        self.lbd_takes_over("a stop");
        self.peer.start(&self.lab);
        self.settles(Backup, "the peer is back");

        self.look_for_complaints();
        self.peer.kill();
        self.lbd_takes_over("a death");
        self.peer.start(&self.lab);
        self.settles(Backup, "the peer is back from the dead");

        let node = self.other.clone();
        node.cable(false).unwrap();
        self.lbd_takes_over("a port that is down");
        node.cable(true).unwrap();
        self.settles(Backup, "the peer's port is up");

        node.silently(false).unwrap();
        self.lbd_takes_over("silence");
        node.silently(true).unwrap();
        self.settles(Backup, "the partition heals, and lbd yields");
    }

    fn new(dialect: &Dialect) -> Self {
        let lab = Lab::new().unwrap();
        let node1 = lab.node("node1", [10, 1, 15, 43]).unwrap();
        let other = lab.node("node2", [10, 1, 15, 44]).unwrap();
        for (node, last) in [(&node1, 43), (&other, 44)] {
            // A port that goes down takes no addresses with it.
            node.sysctl("ipv6.conf.all.keep_addr_on_down", "1").unwrap();
            for address in [format!("fe80::{last}/64"), format!("2001:db8::{last}/64")] {
                node.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])
                    .unwrap();
            }
        }
        let lbd = Director::new(&lab, &node1, "").unwrap();
        let peer: Box<dyn Peer> = match dialect.theirs {
            Theirs::Keepalived(..) => Box::new(KeepalivedPeer::new(&lab, &other, dialect)),
            Theirs::Frr(lines) => Box::new(FrrPeer::new(&other, dialect, lines)),
        };
        Self {
            dialect: *dialect,
            lbd,
            peer,
            other,
            lab,
        }
    }

    fn configure(&self, priority: u8) {
        let instance = |name: &str, vrid: u8, addresses: &[&str], more: &str| {
            format!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\n\
                 priority = {priority}\naddresses = {addresses:?}\n{}{more}",
                self.dialect.ours
            )
        };
        let addresses = self.dialect.addresses;
        let text = match self.dialect.second {
            None => instance("VI_1", 20, addresses, ""),
            Some(second) => {
                let group = "sync_group = \"VG_1\"\n";
                instance("VI_1", 20, addresses, group) + &instance("VI_2", 21, &[second], group)
            }
        };
        self.lbd.configure(&text).unwrap();
    }

    fn start_lbd(&mut self) {
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        self.lbd.start(&self.lab).unwrap();
    }

    /// Within this a silent master is replaced: three intervals, the skew, and what a busy machine needs.
    fn patience(&self) -> Duration {
        3 * self.dialect.interval + Duration::from_secs(6)
    }

    /// Waits until lbd is in a state and the peer in the other one; then looks for a while whether it stays so.
    fn settles(&self, lbd: VrrpState, what: &str) {
        let as_expected = || Ok(self.is_lbd(lbd)? && self.peer.is_master() == (lbd == Backup));
        let limit = self.patience() + Duration::from_secs(8);
        wait::until_true(what, limit, as_expected).unwrap_or_else(|error| self.fail(&error));
        std::thread::sleep(self.dialect.interval * 3 / 2);
        if !as_expected().unwrap() {
            self.fail(&anyhow::anyhow!("{what}: it does not last"));
        }
    }

    fn lbd_takes_over(&self, what: &str) {
        wait::until_true(
            &format!("lbd is master after {what}"),
            self.patience(),
            || self.is_lbd(Master),
        )
        .unwrap_or_else(|error| self.fail(&error));
    }

    fn peer_takes_over(&self, what: &str) {
        wait::until_true(
            &format!("the peer is master after {what}"),
            self.patience(),
            || Ok(self.peer.is_master()),
        )
        .unwrap_or_else(|error| self.fail(&error));
    }

    /// Whether all instances are in this state, and the addresses where they should be then.
    fn is_lbd(&self, state: VrrpState) -> anyhow::Result<bool> {
        let status = self.lbd.status()?;
        let holds = holds(&self.lbd.node, &self.dialect)?;
        Ok(status.instances.iter().all(|i| i.state == state) && holds == (state == Master))
    }

    fn rejected(&self) -> Vec<(String, u64)> {
        let status = self.lbd.status().unwrap();
        let all = status.instances.into_iter();
        all.flat_map(|instance| instance.rejected).collect()
    }

    fn look_for_complaints(&mut self) {
        let found = self.peer.complaints();
        let allowed = usize::try_from(self.dialect.settling).unwrap();
        assert!(found.len() <= allowed, "{}: {found:#?}", self.dialect.name);
    }

    fn fail(&self, error: &anyhow::Error) -> ! {
        panic!(
            "{}: {error:#}\nlbd:\n{}\npeer:\n{}",
            self.dialect.name,
            self.lbd.log(),
            self.peer.log()
        );
    }
}

/// Whether a host has all addresses of a dialect. One that has only some is on its way.
pub fn holds(node: &Node, dialect: &Dialect) -> anyhow::Result<bool> {
    let text = node.ip(&["-json", "address", "show"])?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let there: Vec<IpAddr> = links
        .iter()
        .flat_map(|link| link["addr_info"].as_array().into_iter().flatten())
        .filter_map(|address| address["local"].as_str()?.parse().ok())
        .collect();
    let all = dialect.addresses.iter().chain(&dialect.second);
    let found: Vec<bool> = all
        .map(|prefix| {
            let address = prefix.split('/').next().and_then(|text| text.parse().ok());
            address.is_some_and(|address: IpAddr| there.contains(&address))
        })
        .collect();
    anyhow::ensure!(
        found.iter().all(|is| *is == found[0]),
        "{} has some of {:?}",
        node.name,
        dialect.addresses
    );
    Ok(found[0])
}
