//! The thread that runs every VRRP instance: waits for packets, deadlines and commands, feeds the
//! machines, sends adverts, and reports everything else to the daemon.
//!
//! It opens and closes nothing: joining a group and closing wait for locks of the kernel that others hold. Those
//! who give commands do that before and afterwards ([`Driver`]).
//!
//! It never waits for the daemon: commands come through a queue and an eventfd, reports leave
//! through a bounded channel. A full channel drops the report; the daemon notices from the next
//! [`Snapshot`] that a state was entered without its knowledge.

mod hear;
mod thread;

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::JoinHandle,
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as async_mpsc, oneshot};

use self::thread::Loop;
use super::{
    fsm::Reason,
    ports::{Ports, Ready},
    realtime::{self, Waiter},
    round::Outside,
    runner::{Order, Snapshot},
    socket::{RECEIVE_BUFFER, SMALLEST_PACKET},
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
    /// With the sockets of all of them.
    Configure(Vec<Setup>, Vec<Ready>, oneshot::Sender<()>),
    Link(RouterId, Link, Option<Ready>),
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
    reports: async_mpsc::WeakSender<Report>,
    ports: Mutex<Ports>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts the thread, without instances.
    pub fn start() -> io::Result<(Self, async_mpsc::Receiver<Report>)> {
        let inbox = Arc::new(Queue::default());
        let commands = Arc::downgrade(&inbox);
        let (reports, outbox) = async_mpsc::channel(REPORT_QUEUE);
        let weak_reports = reports.downgrade();
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
                reports: weak_reports,
                ports: Mutex::default(),
                wake,
                thread: Some(thread),
            },
            outbox,
        ))
    }

    /// Makes these the running instances. One that [goes on](Instance::goes_on_as), whatever it is called now,
    /// misses no advert, and nothing is reported of it; one that is gone says priority 0.
    pub async fn configure(&self, mut setups: Vec<Setup>) {
        for setup in &mut setups {
            if !self.prepare(&setup.instance, setup.link) {
                // Deaf, it would become a second master. The daemon tries again.
                setup.link = Link::Down;
            }
        }
        let instances: Vec<Instance> = setups.iter().map(|s| s.instance.clone()).collect();
        let (done, finished) = oneshot::channel();
        let sockets = self.ports().all();
        self.send(Command::Configure(setups, sockets, done));
        let _ = finished.await;
        self.ports().keep_only(&instances);
    }

    /// Tells what became of an instance's interface.
    pub fn link(&self, instance: &Instance, link: Link) {
        let is_ready = self.prepare(instance, link);
        let link = if is_ready { link } else { Link::Down };
        let socket = self.ports().of(instance);
        self.send(Command::Link(instance.router(), link, socket));
    }

    /// Opens what an instance needs on an interface that is up. Says whether it can hear and speak; a failure is
    /// reported once.
    fn prepare(&self, instance: &Instance, link: Link) -> bool {
        let Link::Up { ifindex, .. } = link else {
            return true;
        };
        let Err((error, is_news)) = self.ports().prepare(instance, ifindex) else {
            return true;
        };
        if is_news && let Some(reports) = self.reports.upgrade() {
            let (name, instance) = (&instance.interface, instance.name.clone());
            let error = format!("cannot open a VRRP socket on {name}: {error}");
            let _ = reports.try_send(Report::Trouble { instance, error });
        }
        false
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
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
