//! One simulated host: instances, a queue of packets, and a thread that may sleep.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use crate::{
    model::{Instance, Verdict, VrrpState, VrrpVersion},
    vrrp::{
        driver::{Link, Report, Setup},
        fsm::{Event, Instant},
        groups::Groups,
        pace::Pace,
        packet::decode,
        round::{self, Outside},
        runner::{Order, Runner},
    },
};

/// What a socket's queue holds by default; more is lost.
const QUEUE: usize = 280;

/// An advert on its way.
#[derive(Clone, Debug)]
pub enum Packet {
    /// As on the wire.
    Bytes(Rc<[u8]>),
    /// What the decoder would make of it.
    Event(Event),
}

/// Something that an instance did.
#[derive(Debug)]
pub enum Deed {
    Entered(VrrpState, String),
    Announced,
}

/// What the instances did since it was looked at last, by segment.
#[derive(Default)]
pub struct Outbox {
    now: Cell<Instant>,
    changes: Cell<u64>,
    as_bytes: bool,
    pub sent: RefCell<Vec<(usize, u8, Packet)>>,
    pub done: RefCell<Vec<(usize, Deed)>>,
}

impl Outside for Outbox {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn count_change(&self) -> u64 {
        self.changes.set(self.changes.get() + 1);
        self.changes.get()
    }

    fn send(&self, runner: &mut Runner, priority: u8) {
        let Some(source) = runner.source() else {
            return;
        };
        let packet = if self.as_bytes {
            let form = runner.checksum_form();
            runner.packet.next(priority, self.now());
            Packet::Bytes(runner.packet.to(runner.instance.group, form).into())
        } else {
            Packet::Event(Event::Advert {
                priority,
                source,
                interval: runner.machine.settings().interval,
            })
        };
        let segment = segment(&runner.instance);
        self.sent.borrow_mut().push((segment, priority, packet));
    }

    fn report(&self, report: Report) {
        // Names end with the segment's number.
        let segment = |name: &str| usize::from(name.ends_with('1'));
        let deed = match report {
            Report::Entered {
                instance,
                state,
                reason,
                ..
            } => (segment(&instance), Deed::Entered(state, reason.to_string())),
            Report::Announce { instance, .. } => (segment(&instance), Deed::Announced),
            other => panic!("{other:?}"),
        };
        self.done.borrow_mut().push(deed);
    }
}

/// VRIDs count from 1 on each network.
fn segment(instance: &Instance) -> usize {
    usize::from(instance.vrid) - 1
}

/// Its thread does not run.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    pub until: Instant,
    /// The whole host stands still: packets are lost. Otherwise they wait in the queue.
    pub deaf: bool,
}

/// One host.
pub struct Router {
    /// Its instances as they are started, one for each network.
    pub instances: Vec<Instance>,
    pub source: IpAddr,
    /// The running instances; none while it is stopped or crashed.
    pub runners: Vec<Runner>,
    /// Whether its cable is connected, by network.
    pub carrier: Vec<bool>,
    /// Whether something that it watches is down.
    pub fault: bool,
    pub sleep: Option<Sleep>,
    pub outbox: Outbox,
    inbox: VecDeque<(usize, Packet)>,
    pace: Pace,
    wake: Option<Instant>,
}

impl Router {
    pub fn new(instances: Vec<Instance>, source: IpAddr, as_bytes: bool) -> Self {
        let outbox = Outbox {
            as_bytes,
            ..Outbox::default()
        };
        Self {
            carrier: vec![true; instances.len()],
            instances,
            source,
            runners: Vec::new(),
            fault: false,
            sleep: None,
            outbox,
            inbox: VecDeque::new(),
            pace: Pace::default(),
            wake: None,
        }
    }

    /// When its thread runs next, if nothing comes in.
    pub fn wake(&self) -> Option<Instant> {
        match self.sleep {
            Some(sleep) => Some(sleep.until),
            None => self.wake,
        }
    }

    pub fn is_awake(&self) -> bool {
        self.sleep.is_none()
    }

    pub fn is_running(&self) -> bool {
        !self.runners.is_empty()
    }

    /// Whether it could be master.
    pub fn is_fit(&self) -> bool {
        self.is_running() && self.runners.iter().all(|runner| !runner.is_broken())
    }

    pub fn state(&self, segment: usize) -> VrrpState {
        self.runners
            .get(segment)
            .map_or(VrrpState::Init, |runner| runner.machine.state())
    }

    pub fn is_master(&self, segment: usize) -> bool {
        self.state(segment) == VrrpState::Master
    }

    /// A packet reaches it. Returns whether its thread wakes for that.
    pub fn arrive(&mut self, segment: usize, packet: Packet) -> bool {
        match self.sleep {
            Some(sleep) if sleep.deaf => false,
            Some(_) => {
                if self.inbox.len() < QUEUE {
                    self.inbox.push_back((segment, packet));
                }
                false
            }
            None => {
                self.inbox.push_back((segment, packet));
                true
            }
        }
    }

    /// A round of its thread, as the driver's: commands, adverts, timers.
    pub fn round(&mut self, now: Instant, commands: impl FnOnce(&mut Self)) {
        self.sleep = None;
        self.outbox.now.set(now);
        let late = self.pace.woke(now);
        round::wake(&self.outbox, &mut self.runners, late);
        commands(self);
        while let Some((segment, packet)) = self.inbox.pop_front() {
            self.hear(segment, &packet);
        }
        let groups = Groups::of(&self.runners);
        round::finish(&self.outbox, &mut self.runners, &groups);
        let machines = self.runners.iter().map(|runner| &runner.machine);
        self.wake = self.pace.plan(now, machines).map(|limit| now + limit);
    }

    fn hear(&mut self, segment: usize, packet: &Packet) {
        let Some(runner) = self.runners.get_mut(segment) else {
            return;
        };
        let event = match packet {
            Packet::Event(event) => *event,
            Packet::Bytes(bytes) => {
                let advert = decode(bytes).and_then(|received| received.check(&runner.instance));
                let advert = advert.unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
                assert!(advert.same_addresses);
                Event::Advert {
                    priority: advert.priority,
                    source: advert.source,
                    interval: advert.interval,
                }
            }
        };
        round::hear(&self.outbox, runner, event);
    }

    pub fn start(&mut self) {
        for segment in 0..self.instances.len() {
            let link = self.link(segment);
            let mut runner = Runner::new(Setup {
                instance: self.instances[segment].clone(),
                link,
                verdict: self.verdict(),
            });
            let event = match (link, self.fault) {
                (Link::Down, _) => Event::LinkDown,
                (Link::Up { .. }, true) => Event::TrackDown,
                (Link::Up { .. }, false) => Event::Start,
            };
            round::feed(&self.outbox, &mut runner, event);
            self.runners.push(runner);
        }
    }

    /// It says so.
    pub fn stop(&mut self) {
        for runner in &mut self.runners {
            round::feed(&self.outbox, runner, Event::Stop);
        }
        self.runners.clear();
    }

    /// It says nothing.
    pub fn crash(&mut self) {
        self.runners.clear();
        self.inbox.clear();
        self.sleep = None;
        self.wake = None;
        self.pace = Pace::default();
    }

    /// The cable of a network is pulled or plugged in.
    pub fn plug(&mut self, segment: usize, connected: bool) {
        if std::mem::replace(&mut self.carrier[segment], connected) == connected {
            return;
        }
        let link = self.link(segment);
        let fault = self.fault;
        let now = self.outbox.now();
        let Some(runner) = self.runners.get_mut(segment) else {
            return;
        };
        if connected {
            runner.link = link;
            runner.refresh(now);
            if !fault && !runner.is_grouped() {
                round::feed(&self.outbox, runner, Event::LinkUp);
            }
        } else {
            round::feed(&self.outbox, runner, Event::LinkDown);
            runner.link = link;
        }
    }

    /// Something that it watches goes down or up.
    pub fn track(&mut self, fault: bool) {
        if std::mem::replace(&mut self.fault, fault) == fault {
            return;
        }
        let verdict = self.verdict();
        for runner in &mut self.runners {
            runner.verdict = verdict;
            let is_up = runner.link != Link::Down;
            if fault {
                round::feed(&self.outbox, runner, Event::TrackDown);
            } else if is_up && !runner.is_grouped() {
                round::feed(&self.outbox, runner, Event::TrackUp);
            }
        }
    }

    /// An operator's order to all of its instances.
    pub fn order(&mut self, order: Order) {
        let now = self.outbox.now();
        for runner in &mut self.runners {
            if let Some(event) = runner.obey(order, now) {
                round::feed(&self.outbox, runner, event);
            }
        }
    }

    /// A reload.
    pub fn reload(&mut self, change: impl Fn(&mut Instance)) {
        let now = self.outbox.now();
        for instance in &mut self.instances {
            change(instance);
        }
        for (runner, instance) in self.runners.iter_mut().zip(&self.instances) {
            runner.adopt(instance.clone(), now);
        }
    }

    /// The shortest time after which it is master if its master falls silent, or stops.
    pub fn patience(&self, segment: usize) -> (Duration, Duration) {
        let runner = &self.runners[segment];
        let interval = runner.machine.master_interval();
        let whole = match runner.instance.version {
            VrrpVersion::V2 => Duration::from_secs(1),
            VrrpVersion::V3 => interval,
        };
        // By the RFCs, not by the machine: it is the one that is judged.
        let skew = whole * (256 - u32::from(runner.priority())) / 256;
        (3 * interval + skew, skew)
    }

    fn link(&self, segment: usize) -> Link {
        match self.carrier[segment] {
            true => Link::Up {
                ifindex: 1,
                source: self.source,
            },
            false => Link::Down,
        }
    }

    fn verdict(&self) -> Verdict {
        Verdict {
            difference: 0,
            fault: self.fault,
        }
    }
}
