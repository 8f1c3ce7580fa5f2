//! What runs in the thread.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    os::fd::OwnedFd,
    sync::{Arc, TryLockError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use super::{
    Command, Link, Queue, Report, Setup,
    hear::{self, Audience},
};
use crate::{
    model::{RouterId, Verdict},
    vrrp::{
        fsm::Event,
        groups::Groups,
        pace::Pace,
        packet::TTL,
        ports::{Place, Ready},
        realtime::Waiter,
        round::{self, Outside},
        runner::{Order, Runner, Snapshot},
        socket::{Buffer, VrrpSocket},
    },
};

/// Time since 1970.
pub(super) fn wall() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

pub(super) struct Loop {
    inbox: Arc<Queue>,
    reports: mpsc::Sender<Report>,
    wake: OwnedFd,
    waiter: Waiter,
    epoch: Instant,
    pace: Pace,
    changes: Cell<u64>,
    pub(super) runners: Vec<Runner>,
    groups: Groups,
    /// Opened and closed by those who give commands.
    pub(super) sockets: BTreeMap<Place, Arc<VrrpSocket>>,
    pub(super) audiences: BTreeMap<Place, Audience>,
}

impl Loop {
    pub(super) fn new(
        inbox: Arc<Queue>,
        reports: mpsc::Sender<Report>,
        wake: OwnedFd,
        waiter: Waiter,
    ) -> Self {
        Self {
            inbox,
            reports,
            wake,
            waiter,
            epoch: Instant::now(),
            pace: Pace::default(),
            changes: Cell::new(0),
            runners: Vec::new(),
            groups: Groups::default(),
            sockets: BTreeMap::new(),
            audiences: BTreeMap::new(),
        }
    }

    pub(super) fn run(mut self) {
        let mut buffer = Buffer::new();
        loop {
            let late = self.wait();
            self.in_round(|work, runners| round::wake(work, runners, late));
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            for command in self.take_commands() {
                match command {
                    Command::Configure(setups, sockets, done) => {
                        for ready in sockets {
                            self.install(ready);
                        }
                        self.configure(setups);
                        let _ = done.send(());
                    }
                    Command::Link(router, link, ready) => {
                        if let Some(ready) = ready {
                            self.install(ready);
                        }
                        self.set_link(&router, link);
                    }
                    Command::Track(instance, verdict) => self.set_verdict(&instance, verdict),
                    Command::Snapshot(answer) => {
                        let _ = answer.send(self.snapshots());
                    }
                    Command::Order(instance, order, answer) => {
                        let _ = answer.send(self.obey(&instance, order));
                    }
                    Command::Stop(done) => {
                        self.configure(Vec::new());
                        let _ = done.send(());
                        return;
                    }
                }
            }
            self.receive(&mut buffer);
            self.in_round(|work, runners| round::finish(work, runners, &work.groups));
        }
    }

    /// None while a sender is at it: it wakes us afterwards.
    fn take_commands(&self) -> VecDeque<Command> {
        match self.inbox.try_lock() {
            Ok(mut queue) => std::mem::take(&mut *queue),
            Err(TryLockError::Poisoned(queue)) => std::mem::take(&mut *queue.into_inner()),
            Err(TryLockError::WouldBlock) => VecDeque::new(),
        }
    }

    fn in_round(&mut self, work: impl FnOnce(&Self, &mut [Runner])) {
        let mut runners = std::mem::take(&mut self.runners);
        work(self, &mut runners);
        self.runners = runners;
    }

    /// Until a packet, a command or the next deadline. Returns how much later than it should have.
    fn wait(&mut self) -> Duration {
        let now = self.now();
        let machines = self.runners.iter().map(|runner| &runner.machine);
        let limit = self.pace.plan(now, machines);
        self.waiter.wait(limit);
        self.pace.woke(self.now())
    }

    fn configure(&mut self, setups: Vec<Setup>) {
        let mut old = std::mem::take(&mut self.runners);
        let mut starting = Vec::new();
        for setup in setups {
            let kept = old
                .iter()
                .position(|r| r.instance.goes_on_as(&setup.instance));
            if let Some(index) = kept {
                let mut runner = old.swap_remove(index);
                runner.adopt(setup.instance, self.now());
                self.follow_link(&mut runner, setup.link);
                self.follow_verdict(&mut runner, setup.verdict);
                if runner.link != Link::Down && !self.has_socket(&runner) {
                    // Deaf, it would become a second master. The daemon tries again.
                    runner.link = Link::Down;
                    self.feed(&mut runner, Event::LinkDown);
                }
                if !runner.is_grouped() && !runner.is_broken() {
                    // One that failed with a group that it has left.
                    self.feed(&mut runner, Event::LinkUp);
                }
                self.runners.push(runner);
            } else {
                starting.push(setup);
            }
        }
        // Those that end speak before those that begin: an address may move between them.
        for mut runner in old {
            self.feed(&mut runner, Event::Stop);
        }
        for setup in starting {
            let mut runner = Runner::new(setup);
            let event = if self.has_socket(&runner) {
                match runner.verdict.fault {
                    true => Event::TrackDown,
                    false => Event::Start,
                }
            } else {
                runner.link = Link::Down;
                Event::LinkDown
            };
            self.feed(&mut runner, event);
            self.runners.push(runner);
        }
        let runners = &self.runners;
        self.groups = Groups::of(runners);
        self.audiences = hear::audiences(runners, std::mem::take(&mut self.audiences));
        let audiences = &self.audiences;
        let waiter = &self.waiter;
        self.sockets.retain(|place, socket| {
            let is_used = audiences.contains_key(place);
            if !is_used {
                waiter.remove(socket);
            }
            is_used
        });
    }

    /// Takes a socket, in the place of one of an earlier interface of the same name.
    fn install(&mut self, (place, socket): Ready) {
        if let Some(old) = self.sockets.get(&place) {
            if Arc::ptr_eq(old, &socket) {
                return;
            }
            self.waiter.remove(old);
        }
        // It fails for want of memory in the kernel; adverts are read at every deadline then.
        let _ = self.waiter.add(&*socket);
        self.sockets.insert(place, socket);
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let now = self.now();
        let snapshot = |runner: &Runner| {
            let audience = self.audiences.get(&runner.socket);
            runner.snapshot(now, audience.map(Audience::strays))
        };
        self.runners.iter().map(snapshot).collect()
    }

    fn set_link(&mut self, router: &RouterId, link: Link) {
        let mut runners = std::mem::take(&mut self.runners);
        if let Some(runner) = runners.iter_mut().find(|r| r.instance.is_router(router)) {
            self.follow_link(runner, link);
        }
        self.runners = runners;
    }

    fn set_verdict(&mut self, router: &RouterId, verdict: Verdict) {
        let mut runners = std::mem::take(&mut self.runners);
        if let Some(runner) = runners.iter_mut().find(|r| r.instance.is_router(router)) {
            self.follow_verdict(runner, verdict);
        }
        self.runners = runners;
    }

    fn follow_verdict(&self, runner: &mut Runner, verdict: Verdict) {
        let before = std::mem::replace(&mut runner.verdict, verdict);
        if before.difference != verdict.difference {
            runner.refresh(self.now());
        }
        let is_up = matches!(runner.link, Link::Up { .. });
        match (before.fault, verdict.fault) {
            (false, true) => self.feed(runner, Event::TrackDown),
            (true, false) if is_up && !runner.is_grouped() => self.feed(runner, Event::TrackUp),
            _ => {}
        }
    }

    fn obey(&mut self, instance: &str, order: Order) -> bool {
        let mut runners = std::mem::take(&mut self.runners);
        let runner = runners.iter_mut().find(|r| r.instance.name == instance);
        let is_known = runner.is_some();
        if let Some(runner) = runner
            && let Some(event) = runner.obey(order, self.now())
        {
            self.feed(runner, event);
        }
        self.runners = runners;
        is_known
    }

    fn follow_link(&mut self, runner: &mut Runner, link: Link) {
        if runner.link == link {
            return;
        }
        let was_up = matches!(runner.link, Link::Up { .. });
        match link {
            Link::Down => {
                // The farewell needs the old socket, should the interface still carry it.
                self.feed(runner, Event::LinkDown);
                runner.link = link;
            }
            Link::Up { .. } => {
                runner.link = link;
                runner.refresh(self.now());
                if !self.has_socket(runner) {
                    // Deaf, it would become a second master. The daemon tries again.
                    runner.link = Link::Down;
                    self.feed(runner, Event::LinkDown);
                } else if !was_up && !runner.verdict.fault && !runner.is_grouped() {
                    self.feed(runner, Event::LinkUp);
                }
            }
        }
    }

    /// Whether the instance can hear and speak.
    fn has_socket(&self, runner: &Runner) -> bool {
        let Link::Up { ifindex, .. } = runner.link else {
            return false;
        };
        let socket = self.sockets.get(&runner.socket);
        socket.is_some_and(|socket| socket.ifindex() == ifindex)
    }

    fn feed(&self, runner: &mut Runner, event: Event) {
        round::feed(self, runner, event);
    }
}

impl Outside for Loop {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn count_change(&self) -> u64 {
        self.changes.set(self.changes.get() + 1);
        self.changes.get()
    }

    fn send(&self, runner: &mut Runner, priority: u8) {
        let (Some(socket), Some(source)) = (self.sockets.get(&runner.socket), runner.source())
        else {
            runner.send_errors += 1;
            return;
        };
        let form = runner.checksum_form();
        let mac = runner.virtual_mac();
        runner.packet.next(priority, wall());
        let group = [runner.instance.group];
        let (destinations, hop_limit) = match runner.instance.peers.as_slice() {
            [] => (&group[..], TTL),
            peers => (peers, runner.instance.unicast_ttl.sent),
        };
        for destination in destinations {
            let packet = runner.packet.to(*destination, form);
            let result = match mac {
                Some(mac) => socket.send_from_mac(mac, packet, source, *destination),
                None => socket.send(packet, source, *destination, hop_limit),
            };
            match result {
                Ok(()) => runner.sent += 1,
                Err(error) => {
                    runner.send_errors += 1;
                    if runner.send_errors == 1 {
                        let instance = runner.instance.name.clone();
                        let error = format!(
                            "cannot send an advert to {destination}: {error}; further failures are only counted"
                        );
                        self.report(Report::Trouble { instance, error });
                    }
                }
            }
        }
    }

    fn report(&self, report: Report) {
        let _ = self.reports.try_send(report);
    }
}
