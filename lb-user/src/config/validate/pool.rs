//! What happens when real servers fail and return.

use std::{ops::Range, time::Duration};

use super::{Validator, values::DAY};
use crate::{
    config::{
        raw::{RawMember, RawPool},
        reader::At,
    },
    model::{
        MemberRules, OnDown, PoolCommands, PoolRules, Protocol, RealServer, Scheduler,
        VirtualService,
    },
};

/// Weights of all real servers that there may be, together.
const MAX_QUORUM: i64 = 1 << 30;

impl Validator<'_> {
    pub(super) fn pool(&mut self, raw: RawPool, scheduler: Scheduler) -> PoolRules {
        let defaults = PoolRules::default();
        let number = |n: i64| u32::try_from(n).unwrap_or(1);
        let quorum = self.number(raw.quorum, "quorum", 1..=MAX_QUORUM, 1, |_, _| {});
        let hysteresis_place = raw.hysteresis.as_ref().map(|at| at.span.clone());
        let hysteresis = self.number(raw.hysteresis, "hysteresis", 0..=MAX_QUORUM, 0, |_, _| {});
        if let Some(place) = hysteresis_place
            && hysteresis >= quorum
        {
            let message = format!("`hysteresis` {hysteresis} is not below `quorum` {quorum}");
            let help = "the quorum would not be lost before nothing is alive";
            self.error(&place, message, help);
        }
        let given = raw.panic_threshold.is_some();
        let threshold = self.small(raw.panic_threshold, "panic_threshold", 1..=99, 99);
        if let (false, Some(at)) = (given, &raw.panic_window) {
            self.error(&at.span, "`panic_window` without `panic_threshold`", "");
        }
        let slow_start_place = raw.slow_start.as_ref().map(|at| at.span.clone());
        let slow_start = self.duration(raw.slow_start, "slow_start", Duration::ZERO..=DAY, DAY);
        let by_weight = [
            Scheduler::Wrr,
            Scheduler::Wlc,
            Scheduler::Sed,
            Scheduler::Nq,
        ];
        if let Some(place) = &slow_start_place
            && slow_start > Duration::ZERO
            && !by_weight.contains(&scheduler)
        {
            let message = format!(
                "`slow_start` needs weights, and scheduler {scheduler} does not spread new connections by them"
            );
            let help = "use scheduler wrr or wlc (with IPVS sed or nq too), or leave it out";
            self.error(place, message, help);
        }
        let known = [
            ("move", OnDown::Move),
            ("keep", OnDown::Keep),
            ("reset", OnDown::Reset),
        ];
        PoolRules {
            quorum: number(quorum),
            hysteresis: number(hysteresis),
            alpha: raw.alpha.is_some_and(|at| at.value),
            omega: raw.omega.is_some_and(|at| at.value),
            panic_threshold: given.then_some(threshold),
            panic_window: self.duration(
                raw.panic_window,
                "panic_window",
                Duration::from_secs(1)..=DAY,
                defaults.panic_window,
            ),
            slow_start: match slow_start_place {
                Some(_) => slow_start,
                None => Duration::ZERO,
            },
            on_down: self.choice(raw.on_down, "on_down", OnDown::Move, &known),
            check_on_backup: raw.check_on_backup.is_none_or(|at| at.value),
            notify: PoolCommands {
                quorum_up: raw.quorum_up.map(|at| at.value),
                quorum_down: raw.quorum_down.map(|at| at.value),
                any: raw.notify.map(|at| at.value),
                timeout: self.duration(
                    raw.notify_timeout,
                    "notify_timeout",
                    Duration::from_millis(100)..=DAY,
                    defaults.notify.timeout,
                ),
            },
        }
    }

    /// What cannot be said before the real servers are known.
    pub(super) fn pool_of(&mut self, service: &VirtualService, places: &PoolPlaces) {
        let weights = service.backends.iter().map(|b| u64::from(b.weight));
        let sum: u64 = weights.sum();
        let needed = u64::from(service.pool.quorum) + u64::from(service.pool.hysteresis);
        if let Some(place) = &places.quorum
            && needed > sum
        {
            let message = format!(
                "`quorum` and `hysteresis` need a live weight of {needed}, and all weights together are {sum}"
            );
            self.error(place, message, "the quorum could never be gained");
        }
        if let Some(place) = &places.panic_threshold
            && service.backends.len() == 1
        {
            let message = "`panic_threshold` with a single real server";
            let help = "it would be kept whenever it fails";
            self.error(place, message, help);
        }
        if let Some(place) = &places.on_down
            && service.pool.on_down == OnDown::Reset
            && service.id.protocol != Protocol::Tcp
        {
            let message = format!("`on_down` \"reset\" with protocol {}", service.id.protocol);
            let help = "only TCP has resets: write \"move\" or \"keep\"";
            self.error(place, message, help);
        }
    }
}

/// Where keys stand that are judged later.
pub(super) struct PoolPlaces {
    quorum: Option<Range<usize>>,
    panic_threshold: Option<Range<usize>>,
    on_down: Option<Range<usize>>,
}

impl PoolPlaces {
    pub(super) fn of(raw: &RawPool) -> Self {
        let place = |at: &Option<At<i64>>| at.as_ref().map(|at| at.span.clone());
        Self {
            quorum: place(&raw.quorum).or(place(&raw.hysteresis)),
            panic_threshold: place(&raw.panic_threshold),
            on_down: raw.on_down.as_ref().map(|at| at.span.clone()),
        }
    }
}

/// What a service says of all its real servers.
pub(super) fn member(raw: RawMember) -> MemberRules {
    MemberRules {
        inhibit: raw.inhibit_on_failure.is_some_and(|at| at.value),
        notify_up: raw.notify_up.map(|at| at.value),
        notify_down: raw.notify_down.map(|at| at.value),
    }
}

/// What one says of itself goes before that.
pub(super) fn own_member(raw: RawMember, service: &MemberRules) -> MemberRules {
    MemberRules {
        inhibit: raw
            .inhibit_on_failure
            .map_or(service.inhibit, |at| at.value),
        notify_up: raw
            .notify_up
            .map_or_else(|| service.notify_up.clone(), |at| Some(at.value)),
        notify_down: raw
            .notify_down
            .map_or_else(|| service.notify_down.clone(), |at| Some(at.value)),
    }
}

/// Slots that a ring may need while weights grow: they are multiplied then.
pub(super) fn growing_slots(backends: &[RealServer]) -> usize {
    let weights = backends.iter().map(|b| u64::from(b.weight));
    let most = weights.sum::<u64>() * u64::from(crate::model::RAMP_STEPS);
    let limit = lb_common::limits::MAX_RING_SLOTS as usize;
    usize::try_from(most).unwrap_or(limit).min(limit)
}
