//! What instances watch: scripts, processes, files, interfaces, routes, services; summed up and told
//! to the VRRP thread.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use tokio::sync::watch;

use super::{Daemon, journal::now_ms};
use crate::{
    events::Kind,
    model::{Condition, Config, Instance, ServiceId, Target, Tracked, Verdict},
    net::routes::{Found, Routes},
    script::{Account, NoSuchUser},
    track::{
        Finding, Findings, Source, driver::Scripts, files::Files, processes::Processes,
        state::verdict,
    },
};

/// Everything that is followed, and what is known of each watched thing.
pub struct Tracking {
    scripts: Scripts,
    processes: Processes,
    files: Files,
    routes: Routes,
    routes_found: watch::Receiver<Found>,
    findings: BTreeMap<Tracked, (Condition, Option<String>)>,
    seen: BTreeMap<Tracked, Seen>,
}

/// A watched thing as it was seen last.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) condition: Condition,
    pub(super) detail: Option<String>,
    pub(super) since: SystemTime,
}

/// The accounts that a configuration names, by name; "" is that of all scripts.
pub(super) struct Accounts(HashMap<String, Account>);

impl Accounts {
    /// Finds all of them, or says which is missing.
    pub(super) fn of(config: &Config) -> Result<Self, NoSuchUser> {
        let scripts = config.track_scripts.iter().map(|s| s.user.as_ref());
        let restarts = config.track_processes.iter().map(|p| p.restart.as_ref());
        let named = scripts.chain(restarts.map(|r| r.and_then(|r| r.user.as_ref())));
        let mut all = HashMap::new();
        all.insert(String::new(), Account::of(&config.runtime.script_user)?);
        for name in named.flatten() {
            all.insert(name.clone(), Account::of(name)?);
        }
        Ok(Self(all))
    }

    fn get(&self, name: Option<&String>) -> Option<Account> {
        self.0.get(name.map_or("", String::as_str)).copied()
    }
}

impl Tracking {
    /// Nothing is followed yet. The second value tells of changed routes.
    pub fn new(findings: &Findings) -> (Self, watch::Receiver<Found>) {
        let (routes, routes_found) = Routes::new();
        let changes = routes_found.clone();
        let tracking = Self {
            scripts: Scripts::new(findings.clone()),
            processes: Processes::new(findings.clone()),
            files: Files::new(findings.clone()),
            routes,
            routes_found,
            findings: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        (tracking, changes)
    }

    /// Follows what `config` names. What is known of things that stay stays known, and what must be
    /// known of others before an instance may start is found out here.
    pub(super) async fn configure(&mut self, config: &Config, accounts: &Accounts) {
        let watched: Vec<&Tracked> = config
            .instances
            .iter()
            .flat_map(|instance| &instance.watches)
            .map(|watch| &watch.what)
            .collect();
        self.seen.retain(|what, _| watched.contains(&what));
        let sources = sources(config);
        self.findings
            .retain(|what, _| sources.iter().any(|source| source.tracked() == *what));
        let scripts: Vec<_> = config
            .track_scripts
            .iter()
            .filter_map(|s| Some((s.clone(), accounts.get(s.user.as_ref())?)))
            .collect();
        let findings = &self.findings;
        self.scripts.configure(&scripts, |script| {
            let known = findings.get(&Tracked::Script(script.name.clone()))?;
            Some(known.0 == Condition::Up)
        });
        let processes: Vec<_> = config
            .track_processes
            .iter()
            .filter_map(|process| {
                let user = process.restart.as_ref().and_then(|r| r.user.as_ref());
                Some((process.clone(), accounts.get(user)?))
            })
            .collect();
        let found = self.processes.configure(processes).await;
        found.into_iter().for_each(|finding| self.note(finding));
        let found = self.files.configure(&config.track_files).await;
        found.into_iter().for_each(|finding| self.note(finding));
        let mut routes = Vec::new();
        for what in watched {
            if let Tracked::Route(route) = what
                && !routes.contains(route)
            {
                routes.push(route.clone());
            }
        }
        self.routes.configure(routes).await;
    }

    fn note(&mut self, finding: Finding) {
        let found = (finding.condition, finding.detail);
        self.findings.insert(finding.of.tracked(), found);
    }
}

fn sources(config: &Config) -> Vec<Source> {
    let scripts = config.track_scripts.iter().cloned().map(Source::Script);
    let processes = config.track_processes.iter().cloned();
    let files = config.track_files.iter().cloned().map(Source::File);
    scripts
        .chain(processes.map(Source::Process))
        .chain(files)
        .collect()
}

impl Daemon {
    pub(super) fn on_finding(&mut self, finding: Finding) {
        // What an ended one left in the queue is stale.
        let is_current = match &finding.of {
            Source::Script(script) => self.config.track_scripts.contains(script),
            Source::Process(process) => self.config.track_processes.contains(process),
            Source::File(file) => self.config.track_files.contains(file),
        };
        if is_current {
            self.tracking.note(finding);
            self.follow_watches();
        }
    }

    /// Tells VRRP what became of what its instances watch.
    pub(super) fn follow_watches(&mut self) {
        self.look_at_watched();
        if let Some(vrrp) = &self.vrrp {
            let instances = self.config.instances.iter();
            for instance in instances.filter(|i| !i.watches.is_empty()) {
                vrrp.track(instance.router(), self.verdict_of(instance));
            }
        }
    }

    /// Brings what was seen of watched things up to date, and logs what is new.
    pub(super) fn look_at_watched(&mut self) {
        let watches = self.config.instances.iter().flat_map(|i| &i.watches);
        let now: BTreeMap<Tracked, (Condition, Option<String>)> = watches
            .map(|watch| (watch.what.clone(), self.found(&watch.what)))
            .collect();
        for (what, (condition, detail)) in now {
            let before = self.tracking.seen.get(&what);
            if before.is_none_or(|seen| seen.condition != condition) {
                let detail = detail.as_deref().unwrap_or_default();
                match condition {
                    Condition::Down => tracing::warn!(%what, detail, "down"),
                    // What begins well is no news.
                    Condition::Up | Condition::Value(0) if before.is_none() => {}
                    condition => tracing::info!(%what, detail, "{condition}"),
                }
                let begins_well =
                    before.is_none() && matches!(condition, Condition::Up | Condition::Value(0));
                if !begins_well {
                    let text = match detail {
                        "" => condition.to_string(),
                        detail => format!("{condition}: {detail}"),
                    };
                    let what = what.to_string();
                    self.journal.note(now_ms(), Kind::Track, &what, text, None);
                }
            }
            let since = match before {
                Some(seen) if seen.condition == condition => seen.since,
                Some(_) | None => SystemTime::now(),
            };
            let seen = Seen {
                condition,
                detail,
                since,
            };
            self.tracking.seen.insert(what, seen);
        }
    }

    pub(super) fn verdict_of(&self, instance: &Instance) -> Verdict {
        verdict(&instance.watches, |what| self.found(what).0)
    }

    /// What is known of a watched thing.
    pub(super) fn seen(&self, what: &Tracked) -> Seen {
        self.tracking.seen.get(what).cloned().unwrap_or_else(|| {
            let (condition, detail) = self.found(what);
            Seen {
                condition,
                detail,
                since: SystemTime::now(),
            }
        })
    }

    fn found(&self, what: &Tracked) -> (Condition, Option<String>) {
        match what {
            Tracked::Script(_) | Tracked::Process(_) | Tracked::File(_) => {
                match self.tracking.findings.get(what) {
                    Some(known) => known.clone(),
                    None => self.not_found_yet(what),
                }
            }
            Tracked::Interface(name) => match self.interfaces.by_name(name) {
                None => {
                    let why = "there is no such interface".to_owned();
                    (Condition::Down, Some(why))
                }
                Some(interface) if interface.up => (Condition::Up, None),
                Some(_) => {
                    let why = "down or without carrier".to_owned();
                    (Condition::Down, Some(why))
                }
            },
            Tracked::Route(route) => {
                let routes = self.tracking.routes_found.borrow();
                match routes.get(route).cloned().flatten() {
                    Some(place) => (Condition::Up, Some(place)),
                    None => {
                        let why = "not among the kernel's routes".to_owned();
                        (Condition::Down, Some(why))
                    }
                }
            }
            Tracked::Service(id, quorum) => {
                let (live, all) = self.live(*id);
                let text = format!("{live} of {all} real servers live");
                (Condition::of(live >= *quorum as usize), Some(text))
            }
        }
    }

    /// A script before its first run; a file or processes that take long to look at.
    fn not_found_yet(&self, what: &Tracked) -> (Condition, Option<String>) {
        let why = || Some("not looked at yet".to_owned());
        match what {
            Tracked::Script(name) => {
                let script = self.config.track_scripts.iter().find(|s| s.name == *name);
                let up = script.is_none_or(|script| script.initially_up);
                (Condition::of(up), Some("has not run yet".to_owned()))
            }
            Tracked::File(_) => (Condition::Value(0), why()),
            _ => (Condition::Down, why()),
        }
    }

    /// Real servers of a service that are up, the sorry server not counted, and all of them.
    fn live(&self, id: ServiceId) -> (usize, usize) {
        let service = self.config.services.iter().find(|s| s.id == id);
        let backends = service.map_or(&[][..], |service| &service.backends);
        let is_live = |address| {
            // One that the panic guard keeps serves.
            service.is_some_and(|service| self.condition(service, Target::Host(address)).up)
        };
        let live = backends.iter().filter(|b| is_live(b.address)).count();
        (live, backends.len())
    }
}
