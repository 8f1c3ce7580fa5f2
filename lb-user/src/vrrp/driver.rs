//! The thread that runs every VRRP instance: waits for packets, deadlines and commands, feeds the
//! machines, sends adverts, and reports everything else to the daemon.
//!
//! It never waits for the daemon: commands come through a queue and an eventfd, reports leave
//! through a bounded channel. A full channel drops the report; the daemon notices from the next
//! [`Snapshot`] that a state was entered without its knowledge.

mod hear;

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError, TryLockError, Weak},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::{
    fsm::{Event, Reason},
    pace::Pace,
    packet::TTL,
    realtime::{self, Waiter},
    round::{self, Outside},
    runner::{Order, Runner, Snapshot},
    socket::{Buffer, Kind, RECEIVE_BUFFER, SMALLEST_PACKET, VrrpSocket},
};
use crate::model::{Instance, RouterId, Verdict, VrrpState};

/// Reports that may wait for the daemon. A transition makes one; a daemon that is a thousand
/// transitions behind is not there any more.
const REPORT_QUEUE: usize = 1024;
/// Packets read from one socket before the deadlines are looked at again. More than a socket's queue
/// holds: its 1 MiB, which the kernel doubles, is some 2,700 of the
/// smallest packets. After a stall no timer runs out while the advert that would have stopped it still waits.
/// No more, so that a flood cannot keep ours from leaving.
const RECEIVE_BURST: usize = 4096;
const _: () = assert!(RECEIVE_BURST > 2 * RECEIVE_BUFFER / SMALLEST_PACKET);

/// An instance and the present condition of its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// As configured.
    pub instance: Instance,
    /// Present condition of its interface.
    pub link: Link,
    /// Present condition of what it watches besides.
    pub verdict: Verdict,
}

/// The condition of an instance's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Absent, down, without carrier or without an address.
    Down,
    /// Usable.
    Up {
        /// Interface index.
        ifindex: u32,
        /// Primary address: the source of adverts.
        source: IpAddr,
    },
}

/// What the daemon learns.
#[derive(Clone, Debug)]
pub enum Report {
    /// An instance entered a state.
    Entered {
        /// Instance name.
        instance: String,
        /// Which router that was, should the name have gone to another since.
        router: RouterId,
        /// The new state.
        state: VrrpState,
        /// Why.
        reason: Reason,
        /// The priority in force.
        priority: u8,
    },
    /// The addresses of a master must be announced again.
    Announce {
        /// Instance name.
        instance: String,
        /// Which router that was.
        router: RouterId,
    },
    /// The thread runs like any other.
    NotRealtime(String),
    /// Adverts cannot be sent or received.
    Trouble {
        /// Instance name.
        instance: String,
        /// What failed.
        error: String,
    },
}

enum Command {
    Configure(Vec<Setup>, oneshot::Sender<()>),
    Link(RouterId, Link),
    Track(RouterId, Verdict),
    Snapshot(oneshot::Sender<Vec<Snapshot>>),
    Order(String, Order, oneshot::Sender<bool>),
    Stop(oneshot::Sender<()>),
}

/// Commands on their way. Senders lock it for a moment; the thread never waits for the lock: a sender
/// that was interrupted holding it might never run again while a thread of real-time priority spins.
type Queue = Mutex<VecDeque<Command>>;

/// The running thread.
pub struct Driver {
    /// The thread's; commands to one that is gone are dropped, and with them the wait for an answer.
    commands: Weak<Queue>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts the thread, without instances.
    pub fn start() -> io::Result<(Self, async_mpsc::Receiver<Report>)> {
        let inbox = Arc::new(Queue::default());
        let commands = Arc::downgrade(&inbox);
        let (reports, outbox) = async_mpsc::channel(REPORT_QUEUE);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let waiter = Waiter::new()?;
        waiter.add(&wake)?;
        let wake_in_thread = wake.try_clone()?;
        let thread = std::thread::Builder::new()
            .name("vrrp".to_owned())
            .spawn(move || {
                let realtime = realtime::claim();
                let work = Loop::new(inbox, reports, wake_in_thread, waiter);
                if let Err(error) = realtime {
                    work.report(Report::NotRealtime(error.to_string()));
                }
                work.run();
            })?;
        Ok((
            Self {
                commands,
                wake,
                thread: Some(thread),
            },
            outbox,
        ))
    }

    /// Makes these the running instances. One that [goes on](Instance::goes_on_as), whatever it is called now,
    /// misses no advert, and nothing is reported of it; one that is gone says priority 0.
    pub async fn configure(&self, setups: Vec<Setup>) {
        let (done, finished) = oneshot::channel();
        self.send(Command::Configure(setups, done));
        let _ = finished.await;
    }

    /// Tells what became of an instance's interface.
    pub fn link(&self, instance: RouterId, link: Link) {
        self.send(Command::Link(instance, link));
    }

    /// Tells what became of what an instance watches.
    pub fn track(&self, instance: RouterId, verdict: Verdict) {
        self.send(Command::Track(instance, verdict));
    }

    /// Present state of every instance.
    pub async fn snapshot(&self) -> Vec<Snapshot> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Snapshot(answer));
        answered.await.unwrap_or_default()
    }

    /// Gives an instance an order. Says whether there is such an instance.
    pub async fn order(&self, instance: &str, order: Order) -> bool {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Order(instance.to_owned(), order, answer));
        answered.await.unwrap_or(false)
    }

    /// Stops every instance: masters say priority 0.
    pub async fn stop(mut self) {
        let (done, finished) = oneshot::channel();
        self.send(Command::Stop(done));
        let _ = finished.await;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn send(&self, command: Command) {
        if let Some(queue) = self.commands.upgrade() {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push_back(command);
        }
        // It fails only when the thread is gone, and then there is nobody to tell.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Time since 1970.
fn wall() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

struct Loop {
    inbox: Arc<Queue>,
    reports: async_mpsc::Sender<Report>,
    wake: OwnedFd,
    waiter: Waiter,
    epoch: Instant,
    pace: Pace,
    changes: Cell<u64>,
    runners: Vec<Runner>,
    sockets: BTreeMap<(String, Kind), VrrpSocket>,
}

impl Loop {
    fn new(
        inbox: Arc<Queue>,
        reports: async_mpsc::Sender<Report>,
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
            sockets: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        let mut buffer = Buffer::new();
        loop {
            let late = self.wait();
            self.in_round(|work, runners| round::wake(work, runners, late));
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            for command in self.take_commands() {
                match command {
                    Command::Configure(setups, done) => {
                        self.configure(setups);
                        let _ = done.send(());
                    }
                    Command::Link(instance, link) => self.set_link(&instance, link),
                    Command::Track(instance, verdict) => self.set_verdict(&instance, verdict),
                    Command::Snapshot(answer) => {
                        let _ = answer.send(
                            self.runners
                                .iter()
                                .map(|r| r.snapshot(self.now()))
                                .collect(),
                        );
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
            self.in_round(round::finish);
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
                if runner.link != Link::Down && !self.open(&mut runner) {
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
            let event = if self.open(&mut runner) {
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
        self.sockets.retain(|(name, kind), _| {
            let used = |r: &Runner| r.instance.interface == *name && Kind::of(&r.instance) == *kind;
            runners.iter().any(used)
        });
        for ((name, kind), socket) in &mut self.sockets {
            socket.leave_unless(|group| {
                runners.iter().any(|r| {
                    let here = r.instance.interface == *name && Kind::of(&r.instance) == *kind;
                    here && r.instance.peers.is_empty() && r.instance.group == group
                })
            });
        }
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
                if !self.open(runner) {
                    // Deaf, it would become a second master. The daemon tries again.
                    runner.link = Link::Down;
                    self.feed(runner, Event::LinkDown);
                } else if !was_up && !runner.verdict.fault && !runner.is_grouped() {
                    self.feed(runner, Event::LinkUp);
                }
            }
        }
    }

    /// Opens the interface's socket where it is missing or belongs to an earlier interface of the
    /// same name. Says whether the instance can hear and speak.
    fn open(&mut self, runner: &mut Runner) -> bool {
        let Link::Up { ifindex, .. } = runner.link else {
            return false;
        };
        let name = &runner.instance.interface;
        let kind = Kind::of(&runner.instance);
        // Peers are spoken to one by one.
        let group = runner
            .instance
            .peers
            .is_empty()
            .then_some(runner.instance.group);
        let needs_frames = runner.virtual_mac().is_some();
        let join = |socket: &mut VrrpSocket| {
            if needs_frames {
                socket.open_frames()?;
            }
            group.map_or(Ok(()), |group| socket.join(group))
        };
        let result = match self.sockets.get_mut(&(name.clone(), kind)) {
            Some(socket) if socket.ifindex() == ifindex => join(socket),
            Some(_) | None => VrrpSocket::open(name, ifindex, kind).and_then(|mut socket| {
                join(&mut socket)?;
                self.waiter.add(&socket)?;
                self.sockets.insert((name.clone(), kind), socket);
                Ok(())
            }),
        };
        match result {
            Ok(()) => {
                runner.deaf = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut runner.deaf, true) {
                    let error = format!("cannot open a VRRP socket on {name}: {error}");
                    self.report(Report::Trouble {
                        instance: runner.instance.name.clone(),
                        error,
                    });
                }
                false
            }
        }
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
