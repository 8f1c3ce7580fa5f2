//! The sweep, once a second: expired flows go, the others are counted.

use std::collections::{HashMap, HashSet};

use super::{
    Xdp,
    backends::keys,
    flows::{Flow, Homeless},
    maps::PodWideKey,
};
use crate::{
    dataplane::{
        BackendKey,
        silence::{self, Silence},
    },
    model::Protocol,
};

impl Xdp {
    /// Frees flow slots that nobody uses any more, counts the others, and corrects what the program counted.
    pub(super) fn sweep_flows(&mut self) {
        let loads = self.loads_before();
        let mut counts: HashMap<u16, (u64, u64)> = HashMap::new();
        let mut unanswered: HashMap<u16, u32> = HashMap::new();
        let (clock, timeout) = (self.clock, self.control.load().timeouts.tcp_half_open);
        let spilled = self.all_spilled(|id| self.identities.service(id));
        let (spill, wide_spill) = (&mut self.spill, &mut self.wide_spill);
        let sctp: HashSet<u16> = self
            .plan
            .services
            .iter()
            .filter(|service| service.id.protocol == Protocol::Sctp)
            .filter_map(|service| self.service_ids.get(&service.id))
            .collect();
        let mut count = |flow: &Flow| {
            let count = counts.entry(flow.value.backend()).or_default();
            if flow.is_active(sctp.contains(&flow.service)) {
                count.0 += 1;
            } else {
                count.1 += 1;
            }
        };
        for flow in &spilled {
            count(flow);
        }
        self.flows.sweep(
            &self.control,
            self.clock.now(),
            |flow| {
                // A half-open flow's time-out begins with its first packet and never again.
                let is_first_alone = flow.table.is_half_open() && !flow.table.is_udp();
                let began = flow.value.expires().wrapping_sub(timeout);
                if is_first_alone && silence::counts(clock.seconds(clock.now().wrapping_sub(began)))
                {
                    *unanswered.entry(flow.value.backend()).or_default() += 1;
                }
                count(&flow);
            },
            |flow| {
                // A full spill table forgets the flow that was silent for longest.
                let _ = match flow {
                    Homeless::Narrow(key, value) => spill.insert(key.0, value.0, 0),
                    Homeless::Wide(key, value) => wide_spill.insert(PodWideKey(key), value.0, 0),
                };
            },
        );
        self.bring_spilled_home();
        self.correct_loads(&loads, &counts);
        self.flow_counts = counts;
        self.watch(&unanswered);
    }

    /// Follows which backends answer.
    fn watch(&mut self, unanswered: &HashMap<u16, u32>) {
        let ids: Vec<u16> = self.all_backends().map(|(_, id)| id).collect();
        let seen = ids.into_iter().map(|id| {
            let unanswered = unanswered.get(&id).copied().unwrap_or_default();
            (id, self.counters(id).connections, unanswered)
        });
        let seen: Vec<_> = seen.collect();
        self.unanswered.sweep(seen.into_iter());
    }

    /// Those that most new connections get no answer from.
    pub(super) fn silent_backends(&self) -> Vec<(BackendKey, Silence)> {
        let all = self.all_backends();
        all.filter_map(|(key, id)| Some((key, self.unanswered.of(id)?)))
            .collect()
    }

    fn all_backends(&self) -> impl Iterator<Item = (BackendKey, u16)> {
        let services = self.plan.services.iter();
        services
            .flat_map(keys)
            .map(|key| (key, self.backend_id(&key)))
    }
}
