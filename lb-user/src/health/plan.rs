//! Which checks should run, and which of those running may go on after a reload. Pure.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::model::{Check, Config, Ports, ServiceId};

/// What identifies a checked real server.
pub type Subject = (ServiceId, IpAddr);

/// A check to run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Service and real server.
    pub subject: Subject,
    /// Address and port asked; the port is 0 where none is.
    pub target: SocketAddr,
    /// The way to the real server, where the target is the VIP on it.
    pub via: Option<Via>,
    /// What is asked, and when.
    pub check: Check,
}

/// How a VIP is asked for on one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Via {
    /// The real server's own address.
    pub host: IpAddr,
    /// Their `SO_MARK`.
    pub mark: u32,
    /// Where they are bound to, unless the check says: left to itself the kernel may take the VIP, where
    /// this host has it, and the answer would never come back.
    pub source: Option<IpAddr>,
    /// Where sockets are connected to the VIP itself rather than to the host: the ports that they come
    /// from.
    pub ports: Option<Ports>,
}

/// The jobs of a configuration. Two equal checks of a real server are one job.
pub fn jobs(config: &Config) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for service in &config.services {
        let backends = service.backends.iter();
        let backends = backends.map(|backend| (backend.address, backend.port, &backend.checks));
        let sorry = service.sorry_hosts();
        let sorry = sorry.map(|address| (address, None, &service.sorry_checks));
        for (server, server_port, checks) in backends.chain(sorry) {
            let begin = jobs.len();
            for check in checks {
                let port = match check.kind.has_port() {
                    true => check.port.or(server_port).unwrap_or(service.id.ports.first),
                    false => 0,
                };
                let address = check.address.unwrap_or(server);
                let job = Job {
                    subject: (service.id, server),
                    target: SocketAddr::new(address, port),
                    via: None,
                    check: check.clone(),
                };
                if !jobs[begin..].contains(&job) {
                    jobs.push(job);
                }
            }
        }
    }
    jobs
}

/// Those of `running` to end, and those of `wanted` to begin.
pub fn difference(running: &HashSet<Job>, wanted: &[Job]) -> (Vec<Job>, Vec<Job>) {
    let stay: HashSet<&Job> = wanted.iter().collect();
    let ending = running
        .iter()
        .filter(|job| !stay.contains(job))
        .cloned()
        .collect();
    let beginning = wanted
        .iter()
        .filter(|job| !running.contains(job))
        .cloned()
        .collect();
    (ending, beginning)
}

/// When the `index`-th of `count` new jobs makes its first attempt: spread over the warm-up, so that a
/// start is no thunderclap.
pub fn first_attempt(index: usize, count: usize, warmup: Duration) -> Duration {
    let share = index as f64 / count.max(1) as f64;
    warmup.mul_f64(share)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{CheckKind, Limits, Protocol, Timing};

    pub fn job(last: u8, interval_s: u64) -> Job {
        let address = IpAddr::from([10, 0, 0, last]);
        let vip = SocketAddr::new([192, 0, 2, 1].into(), 80);
        let (second, interval) = (Duration::from_secs(1), Duration::from_secs(interval_s));
        Job {
            subject: (ServiceId::new(Protocol::Tcp, vip), address),
            target: SocketAddr::new(address, 80),
            via: None,
            check: Check {
                kind: CheckKind::Tcp,
                address: None,
                port: None,
                on_vip: false,
                source: None,
                limits: Limits {
                    connect: second,
                    tls: second,
                    answer: second,
                    total: None,
                },
                timing: Timing {
                    interval,
                    rising_interval: interval,
                    down_interval: interval,
                    rise: 1,
                    fall: 1,
                    retries: 0,
                    delay_before_retry: Duration::ZERO,
                    warmup: second,
                    jitter: 0,
                },
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
        let at = |index| first_attempt(index, 100, Duration::from_secs(2));
        assert_eq!(at(0), Duration::ZERO);
        assert_eq!(at(50), Duration::from_secs(1));
        assert!(at(99) < Duration::from_secs(2));
    }
}
