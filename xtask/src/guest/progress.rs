//! Which tests the guest has told the outcome of, from the lines that it prints.

/// What the guest prints before it runs a suite.
pub const BEGIN: &str = "the guest begins suite ";

/// One run of a test program.
pub struct Suite {
    /// Its name.
    pub program: &'static str,
    /// The tests that it runs.
    pub tests: Vec<String>,
}

/// A suite and what is known of it.
struct State {
    silent: Vec<String>,
    passed: usize,
    failed: usize,
    ended: bool,
}

/// Follows the suites of one guest.
pub struct Progress {
    suites: Vec<State>,
    current: usize,
}

impl Progress {
    /// Of a guest that is to run these.
    pub fn new(suites: &[Suite]) -> Self {
        let states = suites.iter().map(|suite| State {
            silent: suite.tests.clone(),
            passed: 0,
            failed: 0,
            ended: false,
        });
        Self {
            suites: states.collect(),
            current: 0,
        }
    }

    /// Takes a line of the guest.
    pub fn take(&mut self, line: &str) {
        if let Some(number) = line.strip_prefix(BEGIN) {
            self.current = number.trim().parse().unwrap_or(self.current);
            return;
        }
        let Some(state) = self.suites.get_mut(self.current) else {
            return;
        };
        // "test life::a_killed_daemon ... ok"
        if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            let before = state.silent.len();
            state.silent.retain(|silent| silent != name);
            match outcome {
                _ if before == state.silent.len() => {}
                "FAILED" => state.failed += 1,
                "ok" => state.passed += 1,
                _ => {}
            }
        } else if line.starts_with("test result: ") {
            state.ended = true;
        }
    }

    /// What the suites that did not come to their end would have printed: a test without an outcome has failed.
    pub fn missing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for state in self.suites.iter().filter(|state| !state.ended) {
            lines.extend(state.silent.iter().map(|t| format!("test {t} ... FAILED")));
            let failed = state.failed + state.silent.len();
            let passed = state.passed;
            lines.push(format!(
                "test result: FAILED. {passed} passed; {failed} failed; 0 ignored: not at its end"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_stops_in_a_suite() {
        let suite = |tests: &[&str]| Suite {
            program: "guest",
            tests: tests.iter().map(|&t| t.to_owned()).collect(),
        };
        let mut progress = Progress::new(&[
            suite(&["a::one", "a::two"]),
            suite(&["b::one", "b::two", "b::three", "b::four"]),
            suite(&["c::one"]),
        ]);
        for line in [
            "the guest begins suite 0",
            "test a::one ... ok",
            "test a::two ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored",
            "the guest begins suite 1",
            "test b::three has been running for over 60 seconds",
            "test b::two ... ok",
            "what a test prints",
            "test b::one ... FAILED",
        ] {
            progress.take(line);
        }
        let expected = [
            "test b::three ... FAILED",
            "test b::four ... FAILED",
            "test result: FAILED. 1 passed; 3 failed; 0 ignored: not at its end",
            "test c::one ... FAILED",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored: not at its end",
        ];
        assert_eq!(progress.missing(), expected);
    }
}
