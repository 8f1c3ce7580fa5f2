//! What instances watch: scripts' results and other interfaces, summed up and told to the VRRP thread.

use std::collections::BTreeMap;

use super::Daemon;
use crate::{
    model::{Instance, TrackScript, Tracked, Verdict},
    track::{
        driver::{ScriptChange, Scripts},
        state::verdict,
    },
};

/// The scripts, and what is known of each.
pub struct Tracking {
    scripts: Scripts,
    known: BTreeMap<String, Known>,
}

struct Known {
    up: bool,
    cause: Option<String>,
}

impl Tracking {
    /// Nothing runs yet.
    pub fn new(scripts: Scripts) -> Self {
        Self {
            scripts,
            known: BTreeMap::new(),
        }
    }

    /// Makes these the running scripts. What is known of those that stay stays known.
    pub fn configure(&mut self, wanted: &[TrackScript]) {
        self.known
            .retain(|name, _| wanted.iter().any(|script| script.name == *name));
        for script in wanted {
            self.known.entry(script.name.clone()).or_insert(Known {
                up: script.initially_up,
                cause: None,
            });
        }
        let known = &self.known;
        self.scripts.configure(wanted, |script| {
            known
                .get(&script.name)
                .map_or(script.initially_up, |known| known.up)
        });
    }
}

impl Daemon {
    pub(super) fn on_script(&mut self, change: ScriptChange) {
        // What an ended one left in the queue is stale.
        if !self.config.track_scripts.contains(&change.script) {
            return;
        }
        let name = &change.script.name;
        let Some(known) = self.tracking.known.get_mut(name) else {
            return;
        };
        match &change.cause {
            None => tracing::info!(script = name, "track script is up"),
            Some(cause) => tracing::warn!(script = name, cause, "track script is down"),
        }
        *known = Known {
            up: change.up,
            cause: change.cause,
        };
        self.follow_watches();
    }

    /// Tells VRRP what became of what its instances watch.
    pub(super) fn follow_watches(&self) {
        if let Some(vrrp) = &self.vrrp {
            for instance in self
                .config
                .instances
                .iter()
                .filter(|i| !i.watches.is_empty())
            {
                vrrp.track(&instance.name, self.verdict_of(instance));
            }
        }
    }

    pub(super) fn verdict_of(&self, instance: &Instance) -> Verdict {
        verdict(&instance.watches, |what| self.is_tracked_up(what))
    }

    fn is_tracked_up(&self, what: &Tracked) -> bool {
        match what {
            Tracked::Script(name) => self.tracking.known.get(name).is_none_or(|known| known.up),
            Tracked::Interface(name) => self.interfaces.by_name(name).is_some_and(|i| i.up),
        }
    }

    /// Each thing that an instance watches: its name, weight, whether it is up, and why it is not.
    pub(super) fn watched(&self, instance: &Instance) -> Vec<(String, i16, bool, Option<String>)> {
        let describe = |what: &Tracked| match what {
            Tracked::Script(name) => self
                .tracking
                .known
                .get(name)
                .and_then(|known| known.cause.clone()),
            Tracked::Interface(name) if self.interfaces.by_name(name).is_none() => {
                Some("there is no such interface".to_owned())
            }
            Tracked::Interface(_) => Some("down or without carrier".to_owned()),
        };
        instance
            .watches
            .iter()
            .map(|watch| {
                let up = self.is_tracked_up(&watch.what);
                let cause = if up { None } else { describe(&watch.what) };
                (watch.what.to_string(), watch.weight, up, cause)
            })
            .collect()
    }
}
