//! Tells people and programs what happens: scripts and arguments, FIFO lines and mails in keepalived's
//! conventions. Nothing here makes anybody wait: everything goes into bounded queues.
//!
//! Scripts of one instance run in order and one at a time. Those of a sync group run when all its instances
//! have entered the state, and begin when the scripts of its instances for that have ended. The FIFO has
//! the events in the order in which they happened, a group after its instances.

mod backlog;
mod event;
mod fifo;
mod groups;
pub mod mail;
mod scripts;

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

pub use self::fifo::FifoError;
use self::{
    event::Event,
    fifo::Fifo,
    groups::Groups,
    mail::Mailer,
    scripts::{Call, Ended, ScriptQueue},
};
use crate::{
    api::proto::{FifoStatus, GroupStatus, MailStatus, ScriptCounts},
    model::{
        CheckKind, Config, Instance, Mail, NotifyScripts, ServiceId, VirtualService, VrrpState,
    },
    script::Account,
};

/// How long mails of the shut-down may be on their way. Nothing but the end of the process waits.
const MAILS_AT_STOP: Duration = Duration::from_secs(2);

/// Whose scripts: a name of an instance, or of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Owner {
    Instance(String),
    Group(String),
    Service(String),
}

/// Tells what happens.
pub struct Notifier {
    account: Account,
    router_id: String,
    instances: Vec<String>,
    groups: Groups,
    queues: HashMap<Owner, ScriptQueue>,
    /// Queues of owners that a reload removed.
    leaving: Vec<ScriptQueue>,
    /// The end of the last script of each instance's last transition.
    last: HashMap<String, Ended>,
    fifo: Option<Fifo>,
    mailer: Option<Mailer>,
    mail: Option<Mail>,
    /// The state that each mail told of last.
    mailed: HashMap<Owner, VrrpState>,
}

impl Notifier {
    /// A notifier whose scripts run as `account`.
    pub fn new(config: &Config, account: Account) -> Result<Self, FifoError> {
        let fifo = config.runtime.notify_fifo.as_ref();
        let fifo = fifo.map(|setup| Fifo::open(setup, account)).transpose()?;
        let mut notifier = Self {
            account,
            router_id: String::new(),
            instances: Vec::new(),
            groups: Groups::default(),
            queues: HashMap::new(),
            leaving: Vec::new(),
            last: HashMap::new(),
            fifo,
            mailer: None,
            mail: None,
            mailed: HashMap::new(),
        };
        notifier.configure(config);
        Ok(notifier)
    }

    /// Follows a configuration. Scripts and mails that wait are not lost.
    pub fn configure(&mut self, config: &Config) {
        self.router_id.clone_from(&config.router_id);
        self.instances = config.instances.iter().map(|i| i.name.clone()).collect();
        self.groups.configure(&config.sync_groups, &self.instances);
        self.mail.clone_from(&config.mail);
        self.forget_what_is_gone(config);
        match (&self.mailer, &config.mail) {
            (Some(mailer), Some(mail)) => mailer.configure(mail),
            (None, Some(mail)) => self.mailer = Some(Mailer::new(mail)),
            (Some(_), None) => self.mailer = None,
            (None, None) => {}
        }
    }

    /// An instance entered a state. `priority` is the one in force.
    pub fn transition(&mut self, instance: &Instance, state: VrrpState, priority: u8) {
        let name = instance.name.clone();
        let event = Event::Instance {
            name: name.clone(),
            state,
            priority,
        };
        let owner = Owner::Instance(name.clone());
        match self.tell(&owner, &event, state, &instance.notify, Vec::new()) {
            Some(ended) => self.last.insert(name.clone(), ended),
            None => self.last.remove(&name),
        };
        if let Some(group) = self.groups.entered(&name, state) {
            let event = Event::Group {
                name: group.name.clone(),
                state,
            };
            let members = group.members.iter();
            let after = members.filter_map(|name| self.last.remove(name)).collect();
            let owner = Owner::Group(group.name.clone());
            self.tell(&owner, &event, state, &group.notify, after);
            let stays = self
                .groups
                .states()
                .any(|(other, _)| other.name == group.name);
            if state == VrrpState::Init && !stays {
                self.forget(&owner);
            }
        }
        if state == VrrpState::Init && !self.instances.contains(&name) {
            self.forget(&owner);
        }
    }

    /// A real server went up, or down because of `cause`.
    pub fn real_server(&self, service: &VirtualService, address: IpAddr, cause: Option<String>) {
        let backend = service.backends.iter().find(|b| b.address == address);
        let checks = backend.map(|backend| backend.checks.as_slice());
        let event = Event::RealServer {
            service: service.id,
            address,
            check: match checks {
                Some([only]) => check_name(&only.kind),
                _ => "CHECK",
            },
            down: cause,
        };
        if let Some(fifo) = &self.fifo {
            fifo.push(event.fifo_line());
        }
        self.write_of_service(service.id, &event);
    }

    /// A mail that tells of a service or its real servers, if somebody wants it.
    fn write_of_service(&self, service: ServiceId, event: &Event) {
        let is_wanted = |mail: &&Mail| mail.about.services.contains(&service);
        if let (Some(_), Some(mailer)) = (self.mail.as_ref().filter(is_wanted), &self.mailer) {
            mailer.push(event.subject(&self.router_id), event.body());
        }
    }

    /// Queues a command that tells of a service's real servers. It may run for `limit`.
    pub fn command(&mut self, service: ServiceId, command: Vec<String>, limit: Duration) {
        let owner = Owner::Service(service.to_string());
        let queue = self.queues.entry(owner);
        let queue = queue.or_insert_with(|| ScriptQueue::new(self.account));
        queue.push(Call {
            command,
            limit,
            after: Vec::new(),
        });
    }

    /// The quorum of a service was gained or lost, with so much weight alive. Only what `is_news` is worth a
    /// mail: a service that begins well is not.
    pub fn quorum(&self, service: &VirtualService, up: bool, live: u64, is_news: bool) {
        let event = Event::Quorum {
            service: service.id,
            quorum: service.pool.quorum,
            hysteresis: service.pool.hysteresis,
            live,
            up,
        };
        if let Some(fifo) = &self.fifo {
            fifo.push(event.fifo_line());
        }
        if is_news {
            self.write_of_service(service.id, &event);
        }
    }

    /// Scripts, FIFO and mail of an instance or group. The end of the last script.
    fn tell(
        &mut self,
        owner: &Owner,
        event: &Event,
        state: VrrpState,
        scripts: &NotifyScripts,
        after: Vec<Ended>,
    ) -> Option<Ended> {
        if let Some(fifo) = &self.fifo {
            fifo.push(event.fifo_line());
        }
        self.write(owner, event, state);
        let mut after = Some(after);
        let mut ended = None;
        for command in commands(scripts, state, event) {
            let queue = self
                .queues
                .entry(owner.clone())
                .or_insert_with(|| ScriptQueue::new(self.account));
            ended = Some(queue.push(Call {
                command,
                limit: scripts.timeout,
                after: after.take().unwrap_or_default(),
            }));
        }
        ended
    }

    /// A mail, if somebody wants it and does not have it yet.
    fn write(&mut self, owner: &Owner, event: &Event, state: VrrpState) {
        let (Some(mail), Some(mailer)) = (&self.mail, &self.mailer) else {
            return;
        };
        let is_wanted = match owner {
            // One that a reload has removed is told of for the last time.
            Owner::Instance(name) => {
                mail.about.instances.contains(name) || self.mailed.contains_key(owner)
            }
            Owner::Group(name) => {
                mail.about.groups.contains(name) || self.mailed.contains_key(owner)
            }
            Owner::Service(_) => false,
        };
        let is_fault = state == VrrpState::Fault && !mail.faults;
        if is_wanted && !is_fault && self.mailed.get(owner) != Some(&state) {
            self.mailed.insert(owner.clone(), state);
            mailer.push(event.subject(&self.router_id), event.body());
        }
    }

    /// Groups that are no more, and mails that nobody wants any more. Instances that are gone are
    /// forgotten when they have stopped.
    fn forget_what_is_gone(&mut self, config: &Config) {
        let is_gone = |owner: &Owner| match owner {
            Owner::Group(name) => !self.groups.knows(name),
            Owner::Instance(_) => false,
            Owner::Service(name) => !config.services.iter().any(|s| s.id.to_string() == *name),
        };
        let owners: Vec<Owner> = self.queues.keys().cloned().collect();
        let gone: Vec<Owner> = owners.into_iter().filter(is_gone).collect();
        for owner in &gone {
            self.forget(owner);
        }
        let Some(mail) = &config.mail else {
            self.mailed.clear();
            return;
        };
        self.mailed.retain(|owner, _| match owner {
            Owner::Instance(name) => {
                mail.about.instances.contains(name) || !self.instances.contains(name)
            }
            Owner::Group(name) => {
                mail.about.groups.contains(name)
                    || !config.sync_groups.iter().any(|group| group.name == *name)
            }
            Owner::Service(_) => false,
        });
    }

    /// An instance goes on under another name: nothing more is told under this one.
    pub fn forget_instance(&mut self, name: &str) {
        self.forget(&Owner::Instance(name.to_owned()));
        self.last.remove(name);
    }

    fn forget(&mut self, owner: &Owner) {
        self.mailed.remove(owner);
        if let Some(queue) = self.queues.remove(owner) {
            queue.close();
            self.leaving.retain(|queue| !queue.is_done());
            self.leaving.push(queue);
        }
    }

    /// What became of an instance's scripts.
    pub fn instance_scripts(&self, name: &str) -> ScriptCounts {
        self.counts(&Owner::Instance(name.to_owned()))
    }

    fn counts(&self, owner: &Owner) -> ScriptCounts {
        self.queues
            .get(owner)
            .map(ScriptQueue::counts)
            .unwrap_or_default()
    }

    /// Sync groups and their scripts.
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.groups
            .states()
            .map(|(group, state)| GroupStatus {
                name: group.name.clone(),
                members: group.members.clone(),
                state,
                scripts: self.counts(&Owner::Group(group.name.clone())),
            })
            .collect()
    }

    /// The FIFO, where there is one.
    pub fn fifo(&self) -> Option<FifoStatus> {
        self.fifo.as_ref().map(Fifo::status)
    }

    /// Mail, where it is configured.
    pub fn mail(&self) -> Option<MailStatus> {
        self.mailer.as_ref().map(Mailer::status)
    }

    /// What an operator should look at.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut owners: Vec<_> = self.queues.iter().collect();
        owners.sort_by_key(|(owner, _)| *owner);
        for (owner, queue) in owners {
            let counts = queue.counts();
            let (Owner::Instance(name) | Owner::Group(name) | Owner::Service(name)) = owner;
            if let (true, Some(last)) = (counts.failing, counts.last_failure) {
                let (command, what) = (last.command, last.what);
                problems.push(format!("{name}: notify script {command} failed: {what}"));
            }
        }
        if let Some(fifo) = self.fifo() {
            if let Some(error) = &fifo.error {
                problems.push(format!("FIFO {}: cannot write: {error}", fifo.path));
            } else if fifo.waiting > 0 {
                problems.push(format!(
                    "FIFO {}: nobody reads it; {} lines wait, {} are lost",
                    fifo.path, fifo.waiting, fifo.dropped
                ));
            }
            if let Some(reader) = fifo.reader.filter(|reader| reader.pid.is_none())
                && let Some(end) = reader.last_end
            {
                let command = reader.command;
                problems.push(format!("the FIFO's reader {command} does not run: {end}"));
            }
        }
        if let Some(mail) = self.mail().filter(|mail| mail.failing) {
            problems.push(format!(
                "mail: {}; {} wait, {} given up",
                mail.last_error.unwrap_or_default(),
                mail.waiting,
                mail.failed
            ));
        }
        problems
    }

    /// Waits for what is queued, for scripts at most `limit`.
    pub async fn finish(self, limit: Duration) {
        let now = Instant::now();
        let queues: Vec<ScriptQueue> = self.queues.into_values().chain(self.leaving).collect();
        let scripts = queues.into_iter().map(|queue| queue.finish(now + limit));
        let (scripts, (), ()) = tokio::join!(
            futures::future::join_all(scripts),
            async {
                if let Some(mailer) = self.mailer {
                    mailer.finish(now + MAILS_AT_STOP).await;
                }
            },
            async {
                if let Some(fifo) = self.fifo {
                    fifo.finish().await;
                }
            },
        );
        if scripts.contains(&false) {
            tracing::warn!("notify scripts were still running; they are ended");
        }
    }
}

/// The command lines of a transition, in order: the state's own as it is, then the general one with
/// keepalived's four arguments.
fn commands(scripts: &NotifyScripts, state: VrrpState, event: &Event) -> Vec<Vec<String>> {
    let own = match state {
        VrrpState::Master => &scripts.master,
        VrrpState::Backup => &scripts.backup,
        VrrpState::Fault => &scripts.fault,
        VrrpState::Init => &scripts.stop,
    };
    let general = scripts.any.as_ref().map(|command| {
        let arguments = event.arguments().into_iter().flatten();
        command.iter().cloned().chain(arguments).collect()
    });
    own.iter().cloned().chain(general).collect()
}

/// What keepalived's mails call a check, where it has one like it.
fn check_name(kind: &CheckKind) -> &'static str {
    match kind {
        CheckKind::Tcp => "TCP CHECK",
        CheckKind::Udp(_) => "UDP CHECK",
        CheckKind::Dns(_) => "DNS_CHECK:",
        CheckKind::Exec(_) => "MISC CHECK",
        _ => "CHECK",
    }
}

/// Seconds since 1970.
fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
