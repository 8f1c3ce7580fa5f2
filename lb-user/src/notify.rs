//! Notify scripts in keepalived's conventions: in order and one at a time per instance, without a
//! shell, as an unprivileged account, killed with their process group when they take too long.

use std::{collections::HashMap, time::Duration};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use crate::{
    model::{Instance, VrrpState},
    script::{self, Account, Outcome},
};

/// Commands of one instance that wait for their turn. An instance that changes its state so often
/// that a hundred wait has a problem no script solves; further ones are dropped and logged.
const QUEUE: usize = 100;
/// Runs scripts.
pub struct Notifier {
    account: Account,
    queues: HashMap<String, (mpsc::Sender<Call>, JoinHandle<()>)>,
}

struct Call {
    command: Vec<String>,
    limit: Duration,
}

impl Notifier {
    /// A notifier whose scripts run as `account`.
    pub fn new(account: Account) -> Self {
        Self {
            account,
            queues: HashMap::new(),
        }
    }

    /// Queues the scripts of a transition: the state's own, then the general one. `priority` is the one
    /// in force.
    pub fn transition(&mut self, instance: &Instance, state: VrrpState, priority: u8) {
        for command in commands(instance, state, priority) {
            let account = self.account;
            let (queue, _) = self.queues.entry(instance.name.clone()).or_insert_with(|| {
                let (queue, calls) = mpsc::channel(QUEUE);
                (queue, tokio::spawn(run_queue(calls, account)))
            });
            let call = Call {
                command,
                limit: instance.notify.timeout,
            };
            if let Err(error) = queue.try_send(call) {
                tracing::error!(instance = instance.name, %error, "dropping a notify script");
            }
        }
    }

    /// Waits for what is queued, at most `limit`.
    pub async fn finish(self, limit: Duration) {
        let tasks: Vec<JoinHandle<()>> = self.queues.into_values().map(|(_, task)| task).collect();
        if timeout(limit, futures::future::join_all(tasks))
            .await
            .is_err()
        {
            tracing::warn!("notify scripts are still running; ending them");
        }
    }
}

/// The command lines of a transition, in order. `notify` gets keepalived's four arguments:
/// `INSTANCE`, the name, the state (`STOP` for the end) and the priority.
fn commands(instance: &Instance, state: VrrpState, priority: u8) -> Vec<Vec<String>> {
    let scripts = &instance.notify;
    let (own, word) = match state {
        VrrpState::Master => (&scripts.master, "MASTER"),
        VrrpState::Backup => (&scripts.backup, "BACKUP"),
        VrrpState::Fault => (&scripts.fault, "FAULT"),
        VrrpState::Init => (&scripts.stop, "STOP"),
    };
    let general = scripts.any.as_ref().map(|command| {
        let arguments =
            ["INSTANCE", &instance.name, word, &priority.to_string()].map(str::to_owned);
        command.iter().cloned().chain(arguments).collect()
    });
    own.iter().cloned().chain(general).collect()
}

async fn run_queue(mut calls: mpsc::Receiver<Call>, account: Account) {
    while let Some(call) = calls.recv().await {
        let name = call.command.join(" ");
        match script::run(&call.command, call.limit, account).await {
            Ok(Outcome::Succeeded) => tracing::debug!(script = name, "notify script succeeded"),
            Ok(Outcome::Failed(status, stderr)) => {
                tracing::warn!(script = name, status, stderr, "notify script failed");
            }
            Ok(Outcome::Killed) => {
                tracing::warn!(script = name, limit = ?call.limit, "notify script killed: it ran too long");
            }
            Err(error) => tracing::warn!(script = name, %error, "cannot run a notify script"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NotifyScripts;

    fn instance(notify: NotifyScripts) -> Instance {
        Instance {
            name: "VI_1".into(),
            interface: "eth0".into(),
            vrid: 20,
            priority: 100,
            advert_interval: Duration::from_secs(1),
            preempt: true,
            source: None,
            group: std::net::Ipv4Addr::new(224, 0, 0, 18).into(),
            version: crate::model::VrrpVersion::V2,
            preempt_delay: Duration::ZERO,
            peers: Vec::new(),
            unicast_ttl: crate::model::UnicastTtl::default(),
            checksum: crate::model::ChecksumForm::Auto,
            auth: crate::model::Auth::None,
            announce: crate::model::AnnounceTiming::default(),
            excluded: Vec::new(),
            network: Default::default(),
            sync_group: None,
            watches: Vec::new(),
            damping: crate::model::LinkDamping::default(),
            addresses: Vec::new(),
            notify,
        }
    }

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn keepalived_conventions() {
        let instance = instance(NotifyScripts {
            master: words("/etc/master.sh one"),
            any: words("/etc/any.sh"),
            ..NotifyScripts::default()
        });
        let lines = |state| -> Vec<String> {
            commands(&instance, state, 95)
                .iter()
                .map(|line| line.join(" "))
                .collect()
        };
        assert_eq!(
            lines(VrrpState::Master),
            ["/etc/master.sh one", "/etc/any.sh INSTANCE VI_1 MASTER 95"]
        );
        assert_eq!(
            lines(VrrpState::Backup),
            ["/etc/any.sh INSTANCE VI_1 BACKUP 95"]
        );
        assert_eq!(
            lines(VrrpState::Fault),
            ["/etc/any.sh INSTANCE VI_1 FAULT 95"]
        );
        assert_eq!(
            lines(VrrpState::Init),
            ["/etc/any.sh INSTANCE VI_1 STOP 95"]
        );
    }
}
