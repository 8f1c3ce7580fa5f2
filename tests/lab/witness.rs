//! Threads that do nothing but wake every 10 ms, one on each core, with the priority that lbd's has: how
//! late they are is what the machine itself does to such a thread.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

const STEP: Duration = Duration::from_millis(10);
/// lbd's own.
const PRIORITY: libc::c_int = 50;

/// The threads at work.
pub struct Witness {
    stop: Arc<AtomicBool>,
    worst_us: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Witness {
    /// Starts them.
    pub fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let worst_us = Arc::new(AtomicU64::new(0));
        let cores = std::thread::available_parallelism()?.get();
        let threads = (0..cores)
            .map(|core| {
                let (stop, worst_us) = (Arc::clone(&stop), Arc::clone(&worst_us));
                std::thread::spawn(move || watch(core, &stop, &worst_us))
            })
            .collect();
        Ok(Self {
            stop,
            worst_us,
            threads,
        })
    }

    /// The latest awakening until now.
    pub fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Ordering::Relaxed))
    }

    /// Ends them, and says whether they could watch.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a witness panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(core: usize, stop: &AtomicBool, worst_us: &AtomicU64) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &cores)?;
    let parameter = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: 0 is the calling thread; the parameter lives until the call returns.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + STEP;
        std::thread::sleep(STEP);
        let late = due.elapsed().as_micros();
        worst_us.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    Ok(())
}
