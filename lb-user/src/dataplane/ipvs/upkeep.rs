//! Makes the kernel hold what it should, and tells what others changed from what we change ourselves.

use std::{
    collections::HashSet,
    time::{Instant, SystemTime},
};

use super::{
    Ipvs,
    codec::{Command, Key, SyncDaemon, Timeouts},
    desired::{self, Wanted},
    kernel::describe,
    probes::Probes,
    reconcile, state_error,
    sysctl::{self, Needs},
    sysctl_error,
};
use crate::dataplane::{DataPlaneError, Plan, plan::PlannedService};

/// What had to be done.
#[derive(Default)]
struct Done {
    what: Vec<String>,
    /// Nothing else was wanted than before: somebody else made it necessary.
    by_others: bool,
}

/// Everything that the kernel is made to hold.
#[derive(Debug, PartialEq)]
pub struct Expected {
    services: Vec<Wanted>,
    needs: Needs,
    timeouts: Timeouts,
    sync: Option<SyncDaemon>,
    /// Those that take answers of probes.
    interfaces: Vec<String>,
}

impl Ipvs {
    /// Makes the kernel hold what `plan` wants, and returns what had to be done for it. What others made necessary is
    /// told, also where a later step fails.
    pub(super) fn bring_about(&mut self, plan: &Plan) -> Result<Vec<String>, DataPlaneError> {
        self.held = self.read_table()?;
        self.amend(plan)
    }

    /// The same where what the kernel holds was read just now.
    pub(super) fn amend(&mut self, plan: &Plan) -> Result<Vec<String>, DataPlaneError> {
        let mut done = Done::default();
        let result = self.do_what_is_missing(plan, &mut done);
        if done.by_others {
            self.note_repairs(&done.what);
        } else if result.is_err() {
            // Some of our change may be in the kernel: nobody else has done that.
            self.expected = None;
        }
        result.map(|()| done.what)
    }

    fn do_what_is_missing(&mut self, plan: &Plan, done: &mut Done) -> Result<(), DataPlaneError> {
        self.slow.let_go(&self.held, plan);
        let wanted = self.wanted(plan);
        let expected = Some(Expected {
            services: wanted.clone(),
            needs: self.needs(plan, false),
            timeouts: self.timeouts,
            sync: self.sync_daemon(plan),
            interfaces: self.probes.interfaces().to_vec(),
        });
        done.by_others = self.expected == expected;
        let done = &mut done.what;
        let services = plan.services.iter();
        let configured: HashSet<Key> = services
            .map(desired::key)
            .chain(self.probes.keys())
            .chain(self.slow.keys())
            .collect();
        let steps = reconcile::steps(&wanted, &self.held, |key| {
            configured.contains(key) || self.state.has(key)
        });
        self.state
            .claim(configured.iter().copied())
            .map_err(state_error)?;
        // The kernel lets go of a removed service's connections only with `expire_nodest_conn`: it goes last.
        let is_the_end = plan.services.is_empty() && self.slow.is_empty();
        if !is_the_end {
            self.set_sysctls(plan, steps.reorders, done)?;
        }
        if !plan.services.is_empty() {
            self.follow_timeouts(done)?;
        }
        for command in &steps.commands {
            self.kernel.change(command)?;
            done.push(describe(command));
        }
        for command in &steps.tidying {
            self.kernel.change(command)?;
        }
        self.follow_sync(plan, done)?;
        if is_the_end || steps.reorders {
            self.set_sysctls(plan, false, &mut Vec::new())?;
        }
        self.state
            .keep(configured.into_iter())
            .map_err(state_error)?;
        let told: HashSet<Key> = steps
            .commands
            .iter()
            .chain(&steps.tidying)
            .filter_map(Command::changed_service)
            .collect();
        if !told.is_empty() {
            // All else was read a moment ago.
            self.held
                .retain(|(entry, _)| !told.contains(&entry.service.key));
            self.held = self.kernel.table_since(std::mem::take(&mut self.held))?;
        }
        self.read = Instant::now();
        self.expected = expected;
        Ok(())
    }

    fn set_sysctls(
        &mut self,
        plan: &Plan,
        reorders: bool,
        done: &mut Vec<String>,
    ) -> Result<(), DataPlaneError> {
        let needs = self.needs(plan, reorders);
        let changes = sysctl::apply(needs, &mut self.state).map_err(sysctl_error)?;
        done.extend(changes);
        let interfaces = self.probes.interfaces();
        done.extend(sysctl::accept_own(interfaces, &mut self.state).map_err(sysctl_error)?);
        Ok(())
    }

    fn follow_timeouts(&mut self, done: &mut Vec<String>) -> Result<(), DataPlaneError> {
        let now = self.kernel.timeouts()?;
        if now != self.timeouts {
            self.state
                .remember_timeouts([now.tcp, now.tcp_fin, now.udp])
                .map_err(state_error)?;
            self.kernel.change(&Command::SetTimeouts(self.timeouts))?;
            done.push("change time-outs".to_owned());
        }
        Ok(())
    }

    /// Makes the kernel hold the plan again, after a change of ours and every second. What else is not as it should be was
    /// changed by somebody else: so this comes before another plan, which would put that right and could not tell whose
    /// change it was; a change of roles cannot wait for it.
    pub(super) fn repair(&mut self) {
        let Some(plan) = self.plan.take() else { return };
        let result = self.bring_about(&plan);
        self.plan = Some(plan);
        let error = result.err().map(|error| error.to_string());
        if let Some(error) = &error
            && self.trouble.as_ref() != Some(error)
        {
            tracing::error!(
                error,
                "IPVS is not as it should be; trying again every second"
            );
        }
        self.trouble = error;
    }

    fn note_repairs(&mut self, done: &[String]) {
        let Some(last) = done.last() else { return };
        tracing::warn!(
            repairs = done.join("; "),
            "somebody else changed IPVS; it is as it should be again"
        );
        self.repaired.push(match done.len() {
            1 => format!("somebody else changed IPVS, and this was done to mend it: {last}"),
            many => format!(
                "somebody else changed IPVS, and {many} things were done to mend it, the last one: {last}"
            ),
        });
        self.repairs.count += done.len() as u64;
        self.repairs.last = Some(last.clone());
        self.repairs.at = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
    }

    /// What others changed since the last time, and is as it was again, in words.
    pub fn take_repairs(&mut self) -> Vec<String> {
        std::mem::take(&mut self.repaired)
    }

    /// Makes the kernel hold another plan, and returns its number.
    pub(super) fn put(&mut self, plan: &Plan) -> Result<u64, DataPlaneError> {
        let lack = |service| Some((service, PlannedService::ipvs_lacks(service)?));
        if let Some((service, what)) = plan.services.iter().find_map(lack) {
            return Err(DataPlaneError::Lacks {
                plane: "IPVS",
                service: service.id.to_string(),
                what,
            });
        }
        self.schedulers.ask_for(plan);
        let done = match self.bring_about(plan) {
            Ok(done) => done,
            Err(error) => {
                // All of a plan or nothing of it.
                self.repair();
                return Err(error);
            }
        };
        if !done.is_empty() || self.plan.is_none() {
            tracing::debug!(changes = done.join("; "), "IPVS");
            self.generation += 1;
        }
        self.plan = Some(plan.clone());
        Ok(self.generation)
    }

    /// Removes what is ours from the kernel.
    pub(super) fn clear(&mut self) -> Result<(), DataPlaneError> {
        let empty = Plan::default();
        self.takes_over_until = None;
        self.probes = Probes::default();
        self.slow.clear();
        self.learning = false;
        self.bring_about(&empty)?;
        if let Some([tcp, tcp_fin, udp]) = self.state.timeouts() {
            let before = Timeouts { tcp, tcp_fin, udp };
            self.kernel.change(&Command::SetTimeouts(before))?;
        }
        self.state.remove().map_err(state_error)
    }
}
