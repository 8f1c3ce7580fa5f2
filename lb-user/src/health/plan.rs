//! Which checks should run, and which of those running may go on after a reload. Pure.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::model::{Check, Config, ServiceId};

/// What identifies a checked real server.
pub type Subject = (ServiceId, IpAddr);

/// A check to run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Service and real server.
    pub subject: Subject,
    /// Address and port asked.
    pub target: SocketAddr,
    /// What is asked, and when.
    pub check: Check,
}

/// The jobs of a configuration.
pub fn jobs(config: &Config) -> Vec<Job> {
    let mut jobs = Vec::new();
    for service in &config.services {
        let Some(check) = &service.check else {
            continue;
        };
        for backend in &service.backends {
            let port = check.port.unwrap_or(service.id.ports.first);
            jobs.push(Job {
                subject: (service.id, backend.address),
                target: SocketAddr::new(backend.address, port),
                check: check.clone(),
            });
        }
    }
    jobs
}

/// Those of `running` to end, and those of `wanted` to begin.
pub fn difference(running: &HashSet<Job>, wanted: &[Job]) -> (Vec<Job>, Vec<Job>) {
    let ending = running
        .iter()
        .filter(|job| !wanted.contains(job))
        .cloned()
        .collect();
    let beginning = wanted
        .iter()
        .filter(|job| !running.contains(job))
        .cloned()
        .collect();
    (ending, beginning)
}

/// When the `index`-th of `count` new jobs makes its first attempt: spread over one interval, or
/// over two seconds where that is shorter, so that a start is no thunderclap and still soon tells
/// who is alive.
pub fn first_attempt(index: usize, count: usize, interval: Duration) -> Duration {
    let span = interval.min(Duration::from_secs(2));
    let share = index as f64 / count.max(1) as f64;
    span.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CheckKind, Protocol};

    fn job(last: u8, interval_s: u64) -> Job {
        let address = IpAddr::from([10, 0, 0, last]);
        let vip = SocketAddr::new([192, 0, 2, 1].into(), 80);
        Job {
            subject: (ServiceId::new(Protocol::Tcp, vip), address),
            target: SocketAddr::new(address, 80),
            check: Check {
                kind: CheckKind::Tcp,
                port: None,
                interval: Duration::from_secs(interval_s),
                connect_timeout: Duration::from_secs(1),
                retries: 0,
                delay_before_retry: Duration::ZERO,
            },
        }
    }

    #[test]
    fn unchanged_jobs_go_on() {
        let running = HashSet::from([job(1, 5), job(2, 5)]);
        let wanted = [job(1, 5), job(2, 6), job(3, 5)];
        let (ending, beginning) = difference(&running, &wanted);
        assert_eq!(ending, [job(2, 5)]);
        assert_eq!(beginning, [job(2, 6), job(3, 5)]);
    }

    #[test]
    fn first_attempts_are_spread() {
        let at = |index| first_attempt(index, 100, Duration::from_secs(10));
        assert_eq!(at(0), Duration::ZERO);
        assert_eq!(at(50), Duration::from_secs(1));
        assert!(at(99) < Duration::from_secs(2));
    }
}
