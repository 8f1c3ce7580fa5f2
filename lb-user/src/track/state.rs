//! When a script is up or down, and what everything that is watched makes of an instance. Pure.

use crate::model::{Condition, Effect, TrackScript, Tracked, Verdict, Watch};

/// A file's product below this is a fault, as keepalived has it: a priority cannot fall further.
const LEAST: i64 = -253;
/// A priority cannot rise by more.
const MOST: i64 = 253;

/// State of one script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptState {
    up: bool,
    /// Results in a row that contradict it.
    against: u32,
    /// Whether the next result decides alone.
    is_open: bool,
}

impl ScriptState {
    /// Before the first run. One that counts as up is only presumed fit, so the first run decides;
    /// keepalived does the same, and a director that is unfit from the start does not become master
    /// for as long as `fall` runs take.
    pub fn new(script: &TrackScript) -> Self {
        Self {
            up: script.initially_up,
            against: 0,
            is_open: script.initially_up,
        }
    }

    /// As it was found before.
    pub fn known(up: bool) -> Self {
        Self {
            up,
            against: 0,
            is_open: false,
        }
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes the result of a run. Says whether the state changed.
    pub fn result(&mut self, succeeded: bool, script: &TrackScript) -> bool {
        let is_open = std::mem::take(&mut self.is_open);
        if succeeded == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if succeeded { script.rise } else { script.fall };
        if self.against < needed && !is_open {
            return false;
        }
        *self = Self::known(succeeded);
        true
    }
}

/// What one thing does, in keepalived's way: a positive weight counts while the thing is up, a negative
/// one while it is down, and one of 0 that is down is a fault. A file's number is multiplied by its
/// weight; with a weight of 0, a number other than 0 is a fault.
pub fn effect(weight: i16, condition: Condition) -> Effect {
    match (condition, weight) {
        (Condition::Value(0), _) => Effect::Priority(0),
        (Condition::Value(_) | Condition::Down, 0) => Effect::Fault,
        (Condition::Value(value), weight) => {
            match i64::from(value).saturating_mul(i64::from(weight)) {
                ..LEAST => Effect::Fault,
                product => i32::try_from(product.min(MOST)).map_or(Effect::Fault, Effect::Priority),
            }
        }
        (Condition::Up, 1..) | (Condition::Down, ..0) => Effect::Priority(weight.into()),
        (Condition::Up, ..=0) | (Condition::Down, 1..) => Effect::Priority(0),
    }
}

/// Sums up.
pub fn verdict(watches: &[Watch], condition: impl Fn(&Tracked) -> Condition) -> Verdict {
    let mut verdict = Verdict::default();
    for watch in watches {
        match effect(watch.weight, condition(&watch.what)) {
            Effect::Fault => verdict.fault = true,
            Effect::Priority(difference) => {
                verdict.difference = verdict.difference.saturating_add(difference);
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn script(initially_up: bool) -> TrackScript {
        TrackScript {
            name: "chk".into(),
            command: vec!["/bin/true".into()],
            user: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            initially_up,
        }
    }

    /// The state after each of some results: + is a success, - a failure.
    fn states(mut state: ScriptState, script: &TrackScript, results: &str) -> String {
        let mut states = String::new();
        for result in results.chars() {
            let before = state.is_up();
            let changed = state.result(result == '+', script);
            assert_eq!(changed, before != state.is_up());
            states.push(if state.is_up() { '+' } else { '-' });
        }
        states
    }

    #[test]
    fn rise_and_fall() {
        let (up, down) = (script(true), script(false));
        let rows = [
            // The first run decides for one that is presumed up ...
            (ScriptState::new(&up), "-+-++", "----+"),
            (ScriptState::new(&up), "+--+---", "++++++-"),
            // ... and not for one that must prove itself.
            (ScriptState::new(&down), "+-++", "---+"),
            // One that a reload keeps has proved itself.
            (ScriptState::known(true), "--+---+-++", "+++++----+"),
            (ScriptState::known(false), "+-++", "---+"),
        ];
        for (state, results, expected) in rows {
            assert_eq!(states(state.clone(), &up, results), expected, "{state:?}");
        }
    }

    #[test]
    fn effects() {
        use Condition::{Down, Up, Value};
        let priority = Effect::Priority;
        let rows = [
            (0, Up, priority(0)),
            (0, Down, Effect::Fault),
            (10, Up, priority(10)),
            (10, Down, priority(0)),
            (-10, Up, priority(0)),
            (-10, Down, priority(-10)),
            (0, Value(0), priority(0)),
            (0, Value(-1), Effect::Fault),
            (0, Value(7), Effect::Fault),
            (1, Value(20), priority(20)),
            (-2, Value(20), priority(-40)),
            (-2, Value(-20), priority(40)),
            (1, Value(-253), priority(-253)),
            (1, Value(-254), Effect::Fault),
            (254, Value(-1), Effect::Fault),
            (254, Value(1), priority(253)),
            (254, Value(i32::MAX), priority(253)),
            (-254, Value(i32::MAX), Effect::Fault),
            (-254, Value(i32::MIN), priority(253)),
        ];
        for (weight, condition, expected) in rows {
            assert_eq!(effect(weight, condition), expected, "{weight} {condition}");
        }
    }

    #[test]
    fn weights_and_faults_are_summed_up() {
        let watch = |name: &str, weight| Watch {
            what: Tracked::Interface(name.into()),
            weight,
        };
        let watches = [watch("a", 10), watch("b", -20), watch("c", 0)];
        let with = |down: &[&str]| {
            let verdict = verdict(&watches, |what| {
                Condition::of(!down.iter().any(|name| what.to_string().ends_with(name)))
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
