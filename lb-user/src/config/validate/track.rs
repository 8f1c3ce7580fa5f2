//! What VRRP instances watch.

use std::{collections::HashSet, time::Duration};

use super::{Validator, values::DAY};
use crate::{
    config::{
        raw::{RawTrack, RawTrackScript},
        reader::At,
    },
    model::{TrackScript, Tracked, Watch},
};

/// A priority can move by so much at most: from 254 to 1.
const MAX_WEIGHT: i64 = 253;
const MAX_SCRIPTS: usize = 256;

impl Validator<'_> {
    pub(super) fn track_scripts(&mut self, raw: Vec<At<RawTrackScript>>) -> Vec<TrackScript> {
        let mut names = HashSet::new();
        if let Some(surplus) = raw.get(MAX_SCRIPTS) {
            let message = format!("more than {MAX_SCRIPTS} track scripts");
            self.error(&surplus.span, message, "");
        }
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let name = raw.name.map(|at| at.value).unwrap_or_default();
            if !name.is_empty() && !names.insert(name.clone()) {
                self.error(&span, format!("duplicate track script `{name}`"), "");
            }
            let range = Duration::from_millis(100)..=DAY;
            let interval = self.duration(
                raw.interval,
                "interval",
                range.clone(),
                Duration::from_secs(1),
            );
            all.push(TrackScript {
                name,
                command: raw.command.map(|at| at.value).unwrap_or_default(),
                interval,
                timeout: self.duration(raw.timeout, "timeout", range, interval),
                rise: self.small(raw.rise, "rise", 1..=255, 1).into(),
                fall: self.small(raw.fall, "fall", 1..=255, 1).into(),
                initially_up: self.choice(
                    raw.initial,
                    "initial",
                    true,
                    &[("up", true), ("down", false)],
                ),
            });
        }
        all
    }

    pub(super) fn watches(&mut self, raw: Vec<At<RawTrack>>, scripts: &[String]) -> Vec<Watch> {
        let mut all: Vec<Watch> = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let what = match (raw.script, raw.interface) {
                (Some(script), None) => {
                    if !scripts.contains(&script.value) {
                        let message = format!("there is no [[track_script]] `{}`", script.value);
                        let help = match scripts {
                            [] => String::new(),
                            scripts => format!("there is: {}", scripts.join(", ")),
                        };
                        self.error(&script.span, message, &help);
                    }
                    Tracked::Script(script.value)
                }
                (None, Some(interface)) => {
                    self.interface_name(&interface);
                    Tracked::Interface(interface.value)
                }
                (None, None) | (Some(_), Some(_)) => {
                    self.error(
                        &span,
                        "[[vrrp.track]] names one `script` or one `interface`",
                        "",
                    );
                    continue;
                }
            };
            if all.iter().any(|watch| watch.what == what) {
                self.error(&span, format!("{what} is watched twice"), "");
            }
            let weight = self.number(raw.weight, "weight", -MAX_WEIGHT..=MAX_WEIGHT, 0, |_, _| {});
            all.push(Watch {
                what,
                weight: i16::try_from(weight).unwrap_or_default(),
            });
        }
        all
    }
}
