//! When a watched thing is up or down, and what that makes of an instance. Pure.

use crate::model::{TrackScript, Tracked, Verdict, Watch};

/// State of one script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptState {
    up: bool,
    /// Results in a row that contradict it.
    against: u32,
}

impl ScriptState {
    /// Before the first run.
    pub fn new(up: bool) -> Self {
        Self { up, against: 0 }
    }

    /// Takes the result of a run. Returns the new state if it changed.
    pub fn result(&mut self, succeeded: bool, script: &TrackScript) -> Option<bool> {
        if succeeded == self.up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if succeeded { script.rise } else { script.fall };
        if self.against < needed {
            return None;
        }
        *self = Self::new(succeeded);
        Some(succeeded)
    }
}

/// Sums up, in keepalived's way: a positive weight counts while its thing is up, a negative one while
/// it is down, and one of 0 that is down is a fault.
pub fn verdict(watches: &[Watch], is_up: impl Fn(&Tracked) -> bool) -> Verdict {
    let mut verdict = Verdict::default();
    for watch in watches {
        match (watch.weight, is_up(&watch.what)) {
            (0, false) => verdict.fault = true,
            (weight, true) if weight > 0 => verdict.difference += i32::from(weight),
            (weight, false) if weight < 0 => verdict.difference += i32::from(weight),
            _ => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rise_and_fall() {
        let script = TrackScript {
            name: "chk".into(),
            command: vec!["/bin/true".into()],
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            initially_up: true,
        };
        let mut state = ScriptState::new(true);
        let results = [
            false, false, true, false, false, false, true, false, true, true,
        ];
        let changes: Vec<_> = results
            .iter()
            .map(|result| state.result(*result, &script))
            .collect();
        let mut expected = [None; 10];
        expected[5] = Some(false);
        expected[9] = Some(true);
        assert_eq!(changes, expected);
    }

    #[test]
    fn weights_and_faults() {
        let watch = |name: &str, weight| Watch {
            what: Tracked::Interface(name.into()),
            weight,
        };
        let watches = [watch("a", 10), watch("b", -20), watch("c", 0)];
        let with = |down: &[&str]| {
            let verdict = verdict(&watches, |what| {
                !down.iter().any(|name| what.to_string().ends_with(name))
            });
            (verdict.difference, verdict.fault)
        };
        assert_eq!(with(&[]), (10, false));
        assert_eq!(with(&["a"]), (0, false));
        assert_eq!(with(&["b"]), (-10, false));
        assert_eq!(with(&["c"]), (10, true));
        assert_eq!(with(&["a", "b", "c"]), (-20, true));
    }
}
