//! Schedulers of the kernel's, each a module, which are loaded before they are needed in a hurry.
//!
//! The kernel loads one itself when a service wants it, and holds the lock of all services meanwhile
//! (`ip_vs_genl_set_cmd` and `ip_vs_scheduler_get` of net/netfilter/ipvs). A network namespace that ends at that moment
//! waits for the same lock (`ip_vs_service_nets_cleanup`), and the modules of `lblc` and `lblcr` for the end of that
//! namespace (`register_pernet_subsys`): nobody goes on then, for good. So modprobe comes first, which holds nothing.

use std::{
    collections::{HashMap, HashSet},
    io, iter,
    path::Path,
    process::{Command as Program, Stdio},
    time::{Duration, Instant},
};

use super::{
    Ipvs,
    codec::{Command, Service},
    kernel::KernelError,
};
use crate::dataplane::Plan;

/// One that is not there is not looked for more often: the kernel runs modprobe each time.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known of them.
#[derive(Debug, Default)]
pub struct Schedulers {
    /// modprobe was asked for these.
    asked: HashSet<String>,
    loaded: HashSet<String>,
    refused: HashMap<String, Refused>,
}

/// One that the kernel did not take.
#[derive(Debug)]
struct Refused {
    at: Instant,
    /// What to do, where it does not find it.
    missing: Option<String>,
}

impl Schedulers {
    /// Loads the modules of what a plan needs by modprobe, once each. Where it cannot, the kernel may.
    pub fn ask_for(&mut self, plan: &Plan) {
        for service in &plan.services {
            let name = service.scheduler.to_string();
            if !self.asked.contains(&name) {
                let module = format!("ip_vs_{name}");
                let _ = Program::new("modprobe")
                    .args(["--quiet", &module])
                    .stdin(Stdio::null())
                    .output();
                self.asked.insert(name);
            }
        }
    }

    fn is_due(&self, name: &str) -> bool {
        let waits = self
            .refused
            .get(name)
            .is_some_and(|r| r.at.elapsed() < AGAIN);
        !waits && !self.loaded.contains(name)
    }

    fn note(&mut self, name: String, service: String, tried: Result<(), KernelError>) {
        let missing = match tried {
            Ok(()) => {
                self.refused.remove(&name);
                self.loaded.insert(name);
                return;
            }
            Err(KernelError::NoScheduler { scheduler, .. }) => {
                Some(KernelError::NoScheduler { service, scheduler }.to_string())
            }
            Err(error) => {
                tracing::debug!(%error, name, "nobody knows whether there is a scheduler");
                None
            }
        };
        let at = Instant::now();
        self.refused.insert(name, Refused { at, missing });
    }

    fn missing(&self, name: &str) -> Option<String> {
        let text = self.refused.get(name)?.missing.as_ref()?;
        // Somebody may have loaded it since.
        let module = format!("/sys/module/ip_vs_{name}");
        (!Path::new(&module).exists()).then(|| text.clone())
    }
}

impl Ipvs {
    /// Makes the kernel load the schedulers of `plan`. It does that for a service, which is there for a moment, by a mark
    /// of the slow path's that no packet has. Those that it does not find are tried again with a plan a minute later, then
    /// without modprobe before: a module that was not there for modprobe may be there for the kernel.
    pub fn load_schedulers(&mut self, plan: &Plan) {
        self.schedulers.ask_for(plan);
        for service in &plan.services {
            let name = service.scheduler.to_string();
            if !self.schedulers.is_due(&name) {
                continue;
            }
            match self.try_scheduler(&name) {
                Ok(tried) => self.schedulers.note(name, service.id.to_string(), tried),
                Err(error) => tracing::debug!(%error, name, "cannot try a scheduler"),
            }
        }
    }

    /// What the kernel lacks to hold `plan`, as far as that is known before, and what to do.
    pub fn lacks_for(&self, plan: &Plan) -> Option<String> {
        let mut services = plan.services.iter();
        services.find_map(|service| self.schedulers.missing(&service.scheduler.to_string()))
    }

    /// An error is one of the file that says which services are ours.
    fn try_scheduler(&mut self, name: &str) -> io::Result<Result<(), KernelError>> {
        // Ours may be there of an earlier daemon.
        let key = loop {
            let key = self.slow.spare();
            if !self.state.has(&key) {
                break key;
            }
        };
        self.state.claim(iter::once(key))?;
        let service = Service {
            scheduler: name.to_owned(),
            ..Service::bare(key)
        };
        let made = self.kernel.change(&Command::NewService(service));
        let is_there = made.is_ok();
        let tried = made.and_then(|()| self.kernel.change(&Command::DeleteService(key)));
        // One that cannot be removed now is removed by the next change.
        if !is_there || tried.is_ok() {
            self.state.forget_service(&key)?;
        }
        if self.state.is_empty() {
            self.state.remove()?;
        }
        Ok(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_until_it_is_there() {
        let mut schedulers = Schedulers::default();
        let refused = |name: &str| KernelError::NoScheduler {
            service: "FWM 7".to_owned(),
            scheduler: name.to_owned(),
        };
        let mut note = |name: &str, tried| {
            schedulers.note(name.to_owned(), "tcp 10.1.15.50:80".to_owned(), tried);
            schedulers.missing(name)
        };
        assert_eq!(note("of_all", Ok(())), None);
        assert_eq!(note("of_some", Err(KernelError::NoPermission)), None);
        let text = note("of_nobody", Err(refused("of_nobody"))).unwrap();
        assert!(
            text.starts_with("tcp 10.1.15.50:80: the kernel does not find scheduler `of_nobody`"),
            "{text}"
        );
        assert_eq!(note("of_nobody", Err(KernelError::NoPermission)), None);
        assert!(note("of_few", Err(refused("of_few"))).is_some());
        assert_eq!(note("of_few", Ok(())), None);
        let due = |name| schedulers.is_due(name);
        // Neither what is there nor what was just refused is tried again.
        let names = ["of_all", "of_some", "of_nobody", "of_few", "of_others"];
        assert_eq!(names.map(due), [false, false, false, false, true]);
        assert_eq!(schedulers.loaded.len(), 2);
    }
}
