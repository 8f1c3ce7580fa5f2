//! Which processes are meant, when there are enough of them, and when to start them again. Pure.

use std::time::Duration;

use crate::model::{ProcessPattern, Rest, TrackProcess};

/// A point on the caller's monotonic clock.
pub type Instant = Duration;

/// Processes that ran for so long were started well, and count no more as tries.
const PROVEN: Duration = Duration::from_secs(60);

/// Whether a process is meant. `name` is the kernel's for it, `command_line` its words, each ended by
/// a NUL.
pub fn is_meant(pattern: &ProcessPattern, name: &[u8], command_line: &[u8]) -> bool {
    let mut found = words(command_line);
    match pattern {
        ProcessPattern::Name(wanted) => {
            let wanted = wanted.as_bytes();
            let file_name = |word: &[u8]| word.rsplit(|b| *b == b'/').next() == Some(wanted);
            name == wanted || found.next().is_some_and(file_name)
        }
        ProcessPattern::CommandLine {
            words: wanted,
            rest,
        } => {
            let last = wanted.len().saturating_sub(1);
            let fits = wanted.iter().enumerate().all(|(index, wanted)| {
                let wanted = wanted.as_bytes();
                found.next().is_some_and(|word| {
                    word == wanted
                        || (*rest == Rest::Letters && index == last && word.starts_with(wanted))
                })
            });
            fits && (*rest != Rest::Nothing || found.next().is_none())
        }
    }
}

/// The words of a command line. A process that writes a title over it leaves NULs at its end.
fn words(command_line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = command_line
        .iter()
        .rposition(|b| *b != 0)
        .map_or(0, |last| last + 1);
    let line = &command_line[..end];
    line.split(|b| *b == 0).filter(move |_| end > 0)
}

/// State of one [`TrackProcess`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    count: u32,
    up: bool,
    /// A change that waits for its delay.
    pending: Option<Instant>,
    /// Since when there are enough.
    enough_since: Option<Instant>,
    tries: u32,
    last_try: Option<Instant>,
    is_restarting: bool,
}

impl ProcessState {
    /// As many as were found at first: no delay applies to them.
    pub fn new(process: &TrackProcess, count: u32, now: Instant) -> Self {
        Self {
            count,
            up: is_right(process, count),
            pending: None,
            enough_since: (count >= process.quorum).then_some(now),
            tries: 0,
            last_try: None,
            is_restarting: false,
        }
    }

    /// Whether there are enough, and not too many, for long enough.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Tries in a row to start them again.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Takes the present number.
    pub fn counted(&mut self, process: &TrackProcess, count: u32, now: Instant) {
        let delay = if count > self.count {
            process.fork_delay
        } else {
            process.terminate_delay
        };
        if count != self.count {
            self.count = count;
            if is_right(process, count) == self.up {
                self.pending = None;
            } else if self.pending.is_none() {
                self.pending = Some(now + delay);
            }
            match (self.enough_since, count >= process.quorum) {
                (None, true) => self.enough_since = Some(now),
                (Some(since), false) => {
                    if now.saturating_sub(since) >= PROVEN {
                        self.tries = 0;
                    }
                    self.enough_since = None;
                }
                (None, false) | (Some(_), true) => {}
            }
        }
        self.look(now);
    }

    /// Does what is due.
    pub fn look(&mut self, now: Instant) {
        if self.pending.is_some_and(|due| due <= now) {
            self.pending = None;
            self.up = !self.up;
        }
    }

    /// When to look, or to ask for [`ProcessState::must_restart`], at the latest.
    pub fn due(&self, process: &TrackProcess, now: Instant) -> Option<Instant> {
        let restart = self.next_try(process, now);
        self.pending.into_iter().chain(restart).min()
    }

    /// Whether to run the restart command now. It then counts as running.
    pub fn must_restart(&mut self, process: &TrackProcess, now: Instant) -> bool {
        let is_due = self.next_try(process, now).is_some_and(|due| due <= now);
        if is_due {
            self.tries += 1;
            self.last_try = Some(now);
            self.is_restarting = true;
        }
        is_due
    }

    /// The restart command has ended.
    pub fn restarted(&mut self) {
        self.is_restarting = false;
    }

    /// Whether no further try will be made.
    pub fn has_given_up(&self, process: &TrackProcess) -> bool {
        process
            .restart
            .as_ref()
            .is_some_and(|restart| self.tries >= restart.tries)
            && self.count < process.quorum
            && !self.is_restarting
    }

    fn next_try(&self, process: &TrackProcess, now: Instant) -> Option<Instant> {
        let restart = process.restart.as_ref()?;
        let wanted =
            self.count < process.quorum && !self.is_restarting && self.tries < restart.tries;
        wanted.then(|| self.last_try.map_or(now, |last| last + restart.interval))
    }
}

fn is_right(process: &TrackProcess, count: u32) -> bool {
    count >= process.quorum && process.quorum_max.is_none_or(|most| count <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Restart;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn process(quorum: u32, quorum_max: Option<u32>) -> TrackProcess {
        TrackProcess {
            name: "web".into(),
            pattern: ProcessPattern::Name("nginx".into()),
            quorum,
            quorum_max,
            interval: ms(1_000),
            fork_delay: ms(200),
            terminate_delay: ms(500),
            restart: None,
        }
    }

    #[test]
    fn who_is_meant() {
        let name = |text: &str| ProcessPattern::Name(text.into());
        let line = |text: &str, rest| ProcessPattern::CommandLine {
            words: text.split('|').map(str::to_owned).collect(),
            rest,
        };
        let title: &[u8] = b"nginx: master process /usr/sbin/nginx -g x\0\0\0\0";
        let args: &[u8] = b"/usr/sbin/haproxy\0-f\0/etc/haproxy.cfg\0";
        let rows: [(ProcessPattern, &[u8], &[u8], bool); 21] = [
            (name("nginx"), b"nginx", title, true),
            (name("haproxy"), b"other", args, true),
            (name("hap"), b"haproxy", args, false),
            (name("haproxy2"), b"haproxy", args, false),
            (name("/usr/sbin/haproxy"), b"haproxy", args, false),
            // The kernel cuts names to 15 bytes; the path has all of it.
            (
                name("a-very-long-name"),
                b"a-very-long-nam",
                b"/bin/a-very-long-name\0",
                true,
            ),
            (name("a-very-long-nam"), b"a-very-long-nam", b"", true),
            // A kernel thread has no command line.
            (name("nfsd"), b"nfsd", b"", true),
            (name(""), b"nfsd", b"", false),
            (
                line("/usr/sbin/haproxy|-f|/etc/haproxy.cfg", Rest::Nothing),
                b"x",
                args,
                true,
            ),
            (
                line("haproxy|-f|/etc/haproxy.cfg", Rest::Nothing),
                b"haproxy",
                args,
                false,
            ),
            (
                line("/usr/sbin/haproxy|-f", Rest::Nothing),
                b"x",
                args,
                false,
            ),
            (line("/usr/sbin/haproxy|-f", Rest::Words), b"x", args, true),
            (
                line("/usr/sbin/haproxy|-f|/etc", Rest::Words),
                b"x",
                args,
                false,
            ),
            (
                line("/usr/sbin/haproxy|-f|/etc", Rest::Letters),
                b"x",
                args,
                true,
            ),
            (
                line("/usr/sbin/haproxy|-|/etc/haproxy.cfg", Rest::Letters),
                b"x",
                args,
                false,
            ),
            (
                line("/usr/sbin/haproxy|-f|/etc/haproxy.cfg|-d", Rest::Words),
                b"x",
                args,
                false,
            ),
            (line("/usr/sbin/haproxy", Rest::Words), b"x", args, true),
            (line("/usr/sbin/haproxy", Rest::Nothing), b"x", args, false),
            (
                line("nginx: master process /usr/sbin/nginx -g x", Rest::Nothing),
                b"x",
                title,
                true,
            ),
            (line("nginx", Rest::Words), b"nginx", b"", false),
        ];
        for (pattern, name, line, expected) in rows {
            let line_text = String::from_utf8_lossy(line);
            assert_eq!(
                is_meant(&pattern, name, line),
                expected,
                "{pattern:?} {line_text}"
            );
        }
    }

    /// At which millisecond how many were counted, and whether the state is up afterwards.
    fn play(process: &TrackProcess, first: u32, events: &[(u64, u32, bool)]) {
        let mut state = ProcessState::new(process, first, ms(0));
        for (at, count, up) in events {
            state.counted(process, *count, ms(*at));
            assert_eq!(state.is_up(), *up, "{count} at {at}");
        }
    }

    #[test]
    fn quorum_and_delays() {
        let one = process(1, None);
        play(&one, 1, &[(0, 1, true), (10, 5, true), (20, 1, true)]);
        // Down after the delay, counted from the loss.
        play(
            &one,
            2,
            &[
                (10, 1, true),
                (20, 0, true),
                (519, 0, true),
                (520, 0, false),
            ],
        );
        // A process that is replaced in time was never away.
        play(
            &one,
            1,
            &[
                (10, 0, true),
                (300, 1, true),
                (600, 0, true),
                (1_099, 0, true),
                (1_100, 0, false),
            ],
        );
        // Up after the other delay, and not if it is gone again.
        play(
            &one,
            0,
            &[
                (0, 0, false),
                (10, 1, false),
                (100, 0, false),
                (300, 0, false),
                (310, 1, false),
                (509, 2, false),
                (510, 2, true),
            ],
        );
        let some = process(2, Some(3));
        play(&some, 4, &[(0, 4, false)]);
        play(
            &some,
            3,
            &[
                (10, 4, true),
                (209, 4, true),
                (210, 4, false),
                (220, 3, false),
                (719, 3, false),
                (720, 3, true),
            ],
        );
        let none = process(0, Some(0));
        play(&none, 0, &[(0, 0, true), (10, 1, true), (210, 1, false)]);
    }

    #[test]
    fn without_delays_changes_are_at_once() {
        let process = TrackProcess {
            fork_delay: Duration::ZERO,
            terminate_delay: Duration::ZERO,
            ..process(1, None)
        };
        play(&process, 1, &[(1, 0, false), (2, 1, true), (3, 0, false)]);
    }

    fn restarting() -> TrackProcess {
        TrackProcess {
            restart: Some(Restart {
                command: vec!["start".into()],
                user: None,
                interval: ms(5_000),
                tries: 3,
                timeout: ms(1_000),
            }),
            ..process(1, None)
        }
    }

    #[test]
    fn tries_are_spaced_and_bounded() {
        let process = restarting();
        let mut state = ProcessState::new(&process, 1, ms(0));
        assert!(!state.must_restart(&process, ms(1)));
        state.counted(&process, 0, ms(10));
        assert_eq!(state.due(&process, ms(10)), Some(ms(10)), "at once");
        assert!(state.must_restart(&process, ms(10)));
        assert!(!state.must_restart(&process, ms(9_000)), "it still runs");
        state.restarted();
        for at in [5_010, 10_010] {
            state.look(ms(at - 1));
            assert!(!state.must_restart(&process, ms(at - 1)));
            assert_eq!(state.due(&process, ms(at - 1)), Some(ms(at)));
            assert!(!state.has_given_up(&process));
            assert!(state.must_restart(&process, ms(at)));
            state.restarted();
        }
        assert!(state.has_given_up(&process));
        assert!(!state.must_restart(&process, ms(100_000)));
        // One that somebody else started, and that lasts, is worth new tries.
        state.counted(&process, 1, ms(200_000));
        assert!(!state.has_given_up(&process));
        state.counted(&process, 0, ms(259_999));
        assert!(state.has_given_up(&process), "it did not last");
        state.counted(&process, 1, ms(300_000));
        state.counted(&process, 0, ms(360_000));
        assert!(state.must_restart(&process, ms(360_000)));
        assert_eq!(state.tries(), 1);
    }

    #[test]
    fn what_crashes_at_once_is_not_tried_for_ever() {
        let process = restarting();
        let mut state = ProcessState::new(&process, 0, ms(0));
        let mut tries = 0;
        for at in (0..100_000).step_by(10) {
            state.counted(&process, 0, ms(at));
            if state.must_restart(&process, ms(at)) {
                tries += 1;
                state.restarted();
                state.counted(&process, 1, ms(at + 5));
            }
        }
        assert_eq!(tries, 3);
    }
}
