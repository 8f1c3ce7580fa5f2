//! Watched things and links as the API shows them.

use super::{
    Daemon,
    views::{millis, unix},
};
use crate::{
    api::proto::{InstanceStatus, LinkWait, Watched},
    model::{Condition, Effect, Instance},
    track::state::effect,
};

impl Daemon {
    /// Each thing that an instance watches.
    pub(super) fn watched(&self, instance: &Instance) -> Vec<Watched> {
        let view = |watch: &crate::model::Watch| {
            let seen = self.seen(&watch.what);
            let effect = match effect(watch.weight, seen.condition) {
                Effect::Fault => None,
                Effect::Priority(difference) => Some(difference),
            };
            Watched {
                what: watch.what.to_string(),
                state: seen.condition.to_string(),
                since: unix(seen.since),
                up: seen.condition != Condition::Down && effect.is_some_and(|effect| effect >= 0),
                weight: watch.weight,
                effect,
                detail: seen.detail,
            }
        };
        instance.watches.iter().map(view).collect()
    }

    /// Why an instance's link is not used yet.
    pub(super) fn link_wait(&self, instance: &str) -> Option<LinkWait> {
        let waiting = self.links.waiting(instance)?;
        Some(LinkWait {
            held: waiting.is_held,
            needed_ms: millis(waiting.needed),
            left_ms: waiting.left.map(millis),
        })
    }
}

/// What an operator should know of what an instance watches.
pub(super) fn problems(instance: &InstanceStatus, problems: &mut Vec<String>) {
    let name = &instance.name;
    for watched in instance.watched.iter().filter(|watched| !watched.up) {
        let effect = match (watched.effect, watched.weight) {
            (None, _) => "FAULT".to_owned(),
            (Some(0), weight) => format!("{weight} of priority missing"),
            (Some(effect), _) => format!("priority {effect}"),
        };
        let detail = watched.detail.as_ref();
        let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
        let (what, state) = (&watched.what, &watched.state);
        let verb = if state.starts_with("value") {
            "has"
        } else {
            "is"
        };
        problems.push(format!("{name}: {what} {verb} {state} ({effect}){detail}"));
    }
    // A file that does no harm now may hold nonsense all the same.
    for file in instance.watched.iter().filter(|watched| watched.up) {
        if let (true, Some(detail)) = (file.state.starts_with("value"), &file.detail) {
            problems.push(format!(
                "{name}: {}: {detail}; {} stays",
                file.what, file.state
            ));
        }
    }
    if let Some(wait) = instance.link_wait.as_ref().filter(|wait| wait.held) {
        problems.push(format!(
            "{name}: the link of {} was lost too often; it is used again once it was up for {} s",
            instance.interface,
            wait.needed_ms.div_ceil(1_000)
        ));
    }
}
