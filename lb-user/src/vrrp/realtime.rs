//! What the VRRP thread asks of the kernel: to run before everything else, to have its memory at
//! hand, and to wait for many sockets without allocating.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::event::{Timespec, epoll};

/// Above ordinary real-time work, below the kernel's own watchdogs (99).
const PRIORITY: libc::c_int = 50;
/// Sockets that one wait can name; the others are read in the next round.
const EVENTS: usize = 64;

/// Gives the calling thread real-time priority, which its children do not inherit, and keeps the
/// pages that the process touches in memory. Says what was not allowed; the thread runs without it.
pub fn claim() -> Result<(), io::Error> {
    let parameter = libc::sched_param {
        sched_priority: PRIORITY,
    };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread; the parameter lives until the call returns.
    let scheduling = match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // ONFAULT: the flow tables are mapped too, and mostly empty.
    // SAFETY: no memory is passed.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } != 0 {
        return Err(io::Error::last_os_error());
    }
    scheduling
}

/// Waits for any of its descriptors. One that is closed leaves by itself.
pub struct Waiter {
    epoll: OwnedFd,
}

impl Waiter {
    /// Waits for nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Waits for `descriptor` too.
    pub fn add(&self, descriptor: impl AsFd) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        Ok(epoll::add(
            &self.epoll,
            descriptor,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    /// Waits for `descriptor` no more: closing is not enough where another has it open too.
    pub fn remove(&self, descriptor: impl AsFd) {
        // One that is not among them is no loss.
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    /// Until something can be read, or for `limit`. EINTR and the like only make it come early.
    pub fn wait(&self, limit: Option<Duration>) {
        let timeout = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let _ = epoll::wait(&self.epoll, &mut events, timeout.as_ref());
    }
}
