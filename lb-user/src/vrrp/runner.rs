//! What the VRRP thread keeps of one instance.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant, SystemTime},
};

use super::{
    driver::{Link, Setup},
    fsm::{Event, Machine, Reason, Settings},
    oddities::{Oddities, Oddity},
    packet::{AdvertPacket, Stamp},
    ports::{self, Place},
    replay::Marks,
};
use crate::model::{Auth, ChecksumForm, HmacAuth, Instance, Verdict, VrrpState};

/// What an operator may ask of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To let another router be master: one that is MASTER says so, and keeps the lowest priority
    /// until [`Order::Reset`].
    Failover,
    /// To have this priority until [`Order::Reset`].
    Priority(u8),
    /// To be as configured.
    Reset,
}

/// The lowest priority of one who takes part.
const LOWEST: u8 = 1;

/// Present state of an instance, for `lbctl vrrp`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Instance name.
    pub name: String,
    /// Current state.
    pub state: VrrpState,
    /// The priority in force.
    pub priority: u8,
    /// Whether an operator set it.
    pub is_manual: bool,
    /// Interval of the master that was heard last.
    pub master_interval: Duration,
    /// The longest that the thread, and with it an advert, was late.
    pub worst_lateness: Duration,
    /// Why it was entered.
    pub reason: String,
    /// When it was entered.
    pub since: SystemTime,
    /// Until the timer fires.
    pub timer: Option<Duration>,
    /// Source of adverts, when the interface has one.
    pub source: Option<IpAddr>,
    /// The last other router heard, with its priority and how long ago.
    pub peer: Option<(IpAddr, u8, Duration)>,
    /// Whether the peer's last advert listed other addresses than ours.
    pub addresses_differ: bool,
    /// How often each state was entered, in the order of [`VrrpState::ALL`].
    pub entered: [u64; 4],
    /// Adverts sent.
    pub sent: u64,
    /// Adverts believed.
    pub received: u64,
    /// Adverts that could not be sent.
    pub send_errors: u64,
    /// What was heard that should not be, by sender; what no instance could be named for is counted at
    /// every instance of the interface.
    pub oddities: Vec<(Oddity, Option<IpAddr>, u64)>,
}

/// One instance in the thread: its machine, its packet, its counters.
pub(super) struct Runner {
    pub(super) instance: Instance,
    /// Which socket it hears and speaks by.
    pub(super) socket: Place,
    pub(super) machine: Machine,
    pub(super) packet: AdvertPacket,
    pub(super) link: Link,
    pub(super) reason: Reason,
    pub(super) since: SystemTime,
    pub(super) peer: Option<(IpAddr, u8, Instant)>,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) send_errors: u64,
    pub(super) addresses_differ: bool,
    pub(super) oddities: Oddities,
    pub(super) entered: [u64; 4],
    /// The last one who was master too, and when that was heard.
    pub(super) rival: Option<(IpAddr, Instant)>,
    /// How the last peer computed its checksum.
    pub(super) heard_checksum: Option<ChecksumForm>,
    /// Grows with every change of state, over all instances.
    pub(super) changed: u64,
    /// Its master is silent, but the rest of its group hears theirs.
    pub(super) wants_to_be_master: bool,
    /// Its addresses must be announced again, and with them those of its group: in this round.
    pub(super) announced: bool,
    /// The daemon must be told so.
    pub(super) to_announce: bool,
    /// When as many words as it was told would have been told at one each pause.
    pub(super) told: Option<Duration>,
    /// What everything that it watches makes of it.
    pub(super) verdict: Verdict,
    /// An operator's priority, until reset.
    pub(super) manual: Option<u8>,
    /// The longest that the thread woke after a deadline, or after it should have looked around.
    pub(super) worst_lateness: Duration,
    /// The last sequence number of each peer with authentication headers, and when it was heard.
    pub(super) sequences: BTreeMap<IpAddr, (u32, Instant)>,
    /// The last stamp of each peer with trailers.
    pub(super) marks: Marks,
}

impl Runner {
    /// A runner in INIT.
    pub(super) fn new(setup: Setup) -> Self {
        let source = source_of(&setup.instance, setup.link);
        Self {
            machine: Machine::new(settings(
                &setup.instance,
                tracked(setup.instance.priority, setup.verdict),
                source,
            )),
            packet: AdvertPacket::new(&setup.instance, source),
            socket: ports::place(&setup.instance),
            instance: setup.instance,
            link: setup.link,
            reason: Reason::Started,
            since: SystemTime::now(),
            peer: None,
            sent: 0,
            received: 0,
            send_errors: 0,
            addresses_differ: false,
            oddities: Oddities::default(),
            entered: [0; 4],
            rival: None,
            heard_checksum: None,
            changed: 0,
            wants_to_be_master: false,
            announced: false,
            to_announce: false,
            told: None,
            verdict: setup.verdict,
            manual: None,
            worst_lateness: Duration::ZERO,
            sequences: BTreeMap::new(),
            marks: Marks::default(),
        }
    }

    /// Present state, at `now` of the machine's clock; `strays` are of its socket.
    pub(super) fn snapshot(&self, now: Duration, strays: Option<&Oddities>) -> Snapshot {
        Snapshot {
            name: self.instance.name.clone(),
            state: self.machine.state(),
            priority: self.priority(),
            is_manual: self.manual.is_some(),
            master_interval: self.machine.master_interval(),
            worst_lateness: self.worst_lateness,
            reason: self.reason.to_string(),
            since: self.since,
            timer: self
                .machine
                .deadline()
                .map(|deadline| deadline.saturating_sub(now)),
            source: self.source(),
            peer: self
                .peer
                .map(|(address, priority, at)| (address, priority, at.elapsed())),
            addresses_differ: self.addresses_differ,
            sent: self.sent,
            received: self.received,
            send_errors: self.send_errors,
            entered: self.entered,
            oddities: self.oddities.and(strays),
        }
    }

    /// The form of the next advert's checksum. Before a peer was heard it is RFC 9568's (section 5.2.8), which knows
    /// no peers that are spoken to one by one: these are keepalived's, and so is their form.
    pub(super) fn checksum_form(&self) -> ChecksumForm {
        let alone = match self.instance.peers.is_empty() {
            true => ChecksumForm::Message,
            false => ChecksumForm::PseudoHeader,
        };
        match self.instance.checksum {
            ChecksumForm::Auto => self.heard_checksum.unwrap_or(alone),
            fixed => fixed,
        }
    }

    /// Whether a sequence number is new: it must grow (RFC 4302 section 3.4.3, without a window),
    /// unless its sender was silent for so long that it may have begun anew. What we send counts on
    /// from there, because keepalived keeps one number for all routers of an instance.
    pub(super) fn is_new(&mut self, source: IpAddr, sequence: u32) -> bool {
        let silence = self
            .machine
            .settings()
            .master_down(self.machine.master_interval());
        let last = self.sequences.get(&source);
        let is_new = last.is_none_or(|(last, at)| sequence > *last || at.elapsed() > silence);
        if is_new {
            self.sequences.insert(source, (sequence, Instant::now()));
            self.packet.count_on_from(sequence);
        }
        is_new
    }

    /// Whether an advert that found this one master, and left it so, is one of a master that goes on: the
    /// last word of one that yields comes alone.
    pub(super) fn is_second_master(&mut self, source: IpAddr) -> bool {
        let now = Instant::now();
        let patience = 3 * self
            .machine
            .master_interval()
            .max(self.instance.advert_interval);
        let before = self.rival.replace((source, now));
        before.is_some_and(|(rival, at)| rival == source && now.duration_since(at) <= patience)
    }

    /// Whether a stamp may be believed by its time, before anything is computed.
    pub(super) fn is_timely(&self, stamp: Stamp, wall: Duration) -> bool {
        match &self.instance.auth {
            Auth::Hmac(HmacAuth {
                window: Some(window),
                ..
            }) => stamp.is_within(*window, wall),
            Auth::Hmac(_) | Auth::None | Auth::Pass(_) | Auth::Ah(_) => true,
        }
    }

    /// Whether a stamp, whose HMAC is right, was not heard before.
    pub(super) fn is_new_stamp(&mut self, source: IpAddr, stamp: Stamp, wall: Duration) -> bool {
        let window = match &self.instance.auth {
            Auth::Hmac(hmac) => hmac.window,
            Auth::None | Auth::Pass(_) | Auth::Ah(_) => None,
        };
        self.marks.accept(source, stamp, window, wall)
    }

    /// The MAC address that adverts come from, where it is not the interface's. Peers that are
    /// spoken to one by one may be behind routers: only the kernel knows the way to them.
    pub(super) fn virtual_mac(&self) -> Option<[u8; 6]> {
        let uses = self.instance.network.virtual_mac.is_some() && self.instance.peers.is_empty();
        uses.then(|| self.instance.virtual_mac_address())
    }

    pub(super) fn source(&self) -> Option<IpAddr> {
        match self.link {
            Link::Up { source, .. } => Some(source),
            Link::Down => None,
        }
    }

    /// Whether it belongs to a sync group, which then decides when it recovers.
    pub(super) fn is_grouped(&self) -> bool {
        self.instance.sync_group.is_some()
    }

    /// Whether its timer makes it want to be master instead of being it. Notes that.
    pub(super) fn must_ask_group(&mut self) -> bool {
        let asks = self.is_grouped() && self.machine.state() == VrrpState::Backup;
        self.wants_to_be_master |= asks;
        asks
    }

    /// Whether it cannot be master for reasons of its own.
    pub(super) fn is_broken(&self) -> bool {
        self.link == Link::Down || self.verdict.fault
    }

    /// Takes a changed configuration.
    pub(super) fn adopt(&mut self, instance: Instance, now: Duration) {
        if self.instance != instance {
            self.socket = ports::place(&instance);
            self.instance = instance;
            self.refresh(now);
        }
    }

    /// Follows a changed configuration or source address.
    pub(super) fn refresh(&mut self, now: Duration) {
        let source = source_of(&self.instance, self.link);
        self.packet = AdvertPacket::new(&self.instance, source).continuing(&self.packet);
        self.machine
            .reconfigure(settings(&self.instance, self.priority(), source), now);
    }

    /// The priority in force.
    pub(super) fn priority(&self) -> u8 {
        self.manual
            .unwrap_or_else(|| tracked(self.instance.priority, self.verdict))
    }

    /// Does what an operator asked.
    pub(super) fn obey(&mut self, order: Order, now: Duration) -> Option<Event> {
        self.manual = match order {
            Order::Priority(priority) => Some(priority),
            Order::Failover => Some(LOWEST),
            Order::Reset => None,
        };
        self.refresh(now);
        (order == Order::Failover).then_some(Event::Yield)
    }
}

fn source_of(instance: &Instance, link: Link) -> IpAddr {
    match link {
        Link::Up { source, .. } => source,
        Link::Down if instance.is_v6() => Ipv6Addr::UNSPECIFIED.into(),
        Link::Down => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn settings(instance: &Instance, priority: u8, source: IpAddr) -> Settings {
    Settings {
        version: instance.version,
        priority,
        interval: instance.advert_interval,
        preempt: instance.preempt,
        preempt_delay: instance.preempt_delay,
        source,
    }
}

/// The owner's priority never moves; nobody else becomes one, or falls out, by what it watches.
fn tracked(priority: u8, verdict: Verdict) -> u8 {
    match priority {
        255 => 255,
        other => (i32::from(other) + verdict.difference).clamp(1, 254) as u8,
    }
}
