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
    /// How often a master has told it so far that it stops.
    fn ends_heard(&self) -> usize;
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
    /// How often lbd was started.
    starts: usize,
}

/// The kernel looks through a whole program at each start: a dozen at once, and none is done in time.
static STARTING: Mutex<()> = Mutex::new(());
/// Priority of lbd where it is to be master, and where not.
const HIGHER: u8 = 150;
const LOWER: u8 = 50;
const PEERS: u8 = 100;
/// Adverts of one who begins until the other takes its silence for an end and speaks: three intervals and the skew
/// are not four, and one may be on its way.
const SETTLING: usize = 5;
/// For seeing it, on a busy machine. With adverts once a second it is less than what silence would take.
const MARGIN: Duration = Duration::from_secs(1);

impl Pair {
    /// The whole life of a pair. Panics where anything is not as it should be.
    pub fn live_through(dialect: &Dialect) {
        let mut pair = Self::new(dialect);
        pair.configure(HIGHER);
        pair.start_lbd();
        pair.peer.start(&pair.lab);
        pair.settles(Master, "lbd has the higher priority");
        pair.our_ends();
        pair.nobody_complains("with lbd as master");

        pair.configure(LOWER);
        pair.lbd.ctl(&["reload"]).unwrap();
        pair.settles(Backup, "the peer preempts");
        pair.their_ends();
        pair.nobody_complains("with the peer as master");
    }

    /// lbd is master, and again after each of these. What it has counted ends with it.
    fn our_ends(&mut self) {
        self.nobody_complains("before a stop");
        let told = self.peer.ends_heard();
        self.lbd.stop().unwrap();
        self.peer_takes_over("a stop", self.promptly(PEERS));
        let heard = self.peer.ends_heard() > told;
        assert!(heard, "{}: it was not told", self.dialect.name);
        self.start_lbd();
        self.settles(Master, "lbd is back");

        self.nobody_complains("before a death");
        self.lbd.kill().unwrap();
        self.peer_takes_over("a death", self.patience());
        self.start_lbd();
        self.settles(Master, "lbd is back from the dead");

        let node = self.lbd.node.clone();
        node.cable(false).unwrap();
        self.peer_takes_over("a port that is down", self.patience());
        node.cable(true).unwrap();
        self.settles(Master, "lbd's port is up");

        node.silently(false).unwrap();
        self.peer_takes_over("silence", self.patience());
        node.silently(true).unwrap();
        self.heals(Master, "the partition heals, and the peer yields");
    }

    /// The peer is master, and again after each of these.
    fn their_ends(&mut self) {
        self.nobody_complains("before the peer's stop");
        self.peer.stop();
        self.lbd_takes_over("a stop", self.promptly(LOWER));
        self.knows_of_the_stop();
        self.peer.start(&self.lab);
        self.settles(Backup, "the peer is back");

        self.nobody_complains("before the peer's death");
        self.peer.kill();
        self.lbd_takes_over("a death", self.patience());
        self.peer.start(&self.lab);
        self.settles(Backup, "the peer is back from the dead");

        let node = self.other.clone();
        node.cable(false).unwrap();
        self.lbd_takes_over("a port that is down", self.patience());
        node.cable(true).unwrap();
        self.settles(Backup, "the peer's port is up");

        node.silently(false).unwrap();
        self.lbd_takes_over("silence", self.patience());
        node.silently(true).unwrap();
        self.heals(Backup, "the partition heals, and lbd yields");
    }

    /// lbd is master because it was told of a stop.
    fn knows_of_the_stop(&self) {
        let reason = match self.dialect.second {
            None => "the master stopped (priority 0)",
            // What its members wait for is theirs; the time tells.
            Some(_) => "with its sync group",
        };
        for instance in self.lbd.status().unwrap().instances {
            if instance.reason != reason {
                self.fail(&anyhow::anyhow!("it became master: {}", instance.reason));
            }
        }
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
            starts: 0,
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
        self.starts += 1;
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        self.lbd.start(&self.lab).unwrap();
    }

    /// Within this a silent master is replaced: three intervals, the skew, and what a busy machine needs.
    fn patience(&self) -> Duration {
        3 * self.dialect.interval + Duration::from_secs(6)
    }

    /// Within this a backup of this priority follows a master that says that it stops: the skew.
    fn promptly(&self, priority: u8) -> Duration {
        self.dialect.interval * (256 - u32::from(priority)) / 256 + MARGIN
    }

    /// Both were masters: one hears the other's next advert and yields.
    fn heals(&self, lbd: VrrpState, what: &str) {
        self.settles_within(2 * self.dialect.interval + MARGIN, lbd, what);
    }

    /// Waits until lbd is in a state and the peer in the other one; then looks for a while whether it stays so.
    fn settles(&self, lbd: VrrpState, what: &str) {
        self.settles_within(self.patience() + Duration::from_secs(8), lbd, what);
    }

    fn settles_within(&self, limit: Duration, lbd: VrrpState, what: &str) {
        let as_expected = || Ok(self.is_lbd(lbd)? && self.peer.is_master() == (lbd == Backup));
        wait::until_true(what, limit, as_expected).unwrap_or_else(|error| self.fail(&error));
        std::thread::sleep(self.dialect.interval * 3 / 2);
        if !as_expected().unwrap() {
            self.fail(&anyhow::anyhow!("{what}: it does not last"));
        }
    }

    fn lbd_takes_over(&self, what: &str, limit: Duration) {
        wait::until_true(&format!("lbd is master after {what}"), limit, || {
            self.is_lbd(Master)
        })
        .unwrap_or_else(|error| self.fail(&error));
    }

    fn peer_takes_over(&self, what: &str, limit: Duration) {
        wait::until_true(&format!("the peer is master after {what}"), limit, || {
            Ok(self.peer.is_master())
        })
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

    /// Neither has found fault with the other's adverts since both run.
    fn nobody_complains(&mut self, when: &str) {
        let (mut theirs, ours) = (self.peer.complaints(), self.rejected());
        if let Some(kind) = self.dialect.settling {
            let before = theirs.len();
            theirs.retain(|line| !line.contains(kind));
            let settling = before - theirs.len();
            assert!(
                settling <= SETTLING * self.starts,
                "{settling} times {kind}"
            );
        }
        if !theirs.is_empty() || !ours.is_empty() {
            self.fail(&anyhow::anyhow!(
                "{when}: the peer {theirs:#?}, lbd {ours:#?}"
            ));
        }
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
