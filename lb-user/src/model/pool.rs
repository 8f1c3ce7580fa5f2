//! What a pool of real servers does when some of them fail, as configured.

use std::time::Duration;

/// Steps of a slow start: the first new connections come at a tenth of the weight.
pub const RAMP_STEPS: u32 = 10;

/// Rules of a service's pool. The defaults are keepalived's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRules {
    /// Weight that must be alive, at least 1.
    pub quorum: u32,
    /// How much more must be alive to gain the quorum, and how much less is borne before it is lost;
    /// below the quorum.
    pub hysteresis: u32,
    /// A real server is down until its checks pass for the first time.
    pub alpha: bool,
    /// The commands for "down" are run at shut-down.
    pub omega: bool,
    /// Per cent of the real servers, 1 to 99: when more fail within `panic_window`, all of those
    /// are kept.
    pub panic_threshold: Option<u8>,
    /// How close together failures must be to count as one.
    pub panic_window: Duration,
    /// How long the weight of a real server that has come up grows; zero: it has it at once.
    pub slow_start: Duration,
    /// What becomes of TCP and SCTP flows of a real server that is down.
    pub on_down: OnDown,
    /// Whether health is checked while this director does not serve.
    pub check_on_backup: bool,
    /// Commands that tell of changes.
    pub notify: PoolCommands,
}

/// What becomes of TCP and SCTP flows of a real server that is down. UDP flows always move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// Their next packet goes to another real server, which resets them.
    Move,
    /// They stay where they are.
    Keep,
    /// The director resets them (TCP only).
    Reset,
}

/// Commands that tell of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolCommands {
    /// Run when the quorum is gained.
    pub quorum_up: Option<Vec<String>>,
    /// Run when the quorum is lost.
    pub quorum_down: Option<Vec<String>>,
    /// Run at each change of a real server or of the quorum, with arguments that say which.
    pub any: Option<Vec<String>>,
    /// How long a command may run.
    pub timeout: Duration,
}

/// What a real server of a pool may have of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRules {
    /// When it fails it gets no new connections but keeps those it has (IPVS: weight 0).
    pub inhibit: bool,
    /// Run when it comes up.
    pub notify_up: Option<Vec<String>>,
    /// Run when it goes down.
    pub notify_down: Option<Vec<String>>,
}

impl Default for PoolRules {
    fn default() -> Self {
        Self {
            quorum: 1,
            hysteresis: 0,
            alpha: false,
            omega: false,
            panic_threshold: None,
            panic_window: Duration::from_secs(60),
            slow_start: Duration::ZERO,
            on_down: OnDown::Move,
            check_on_backup: true,
            notify: PoolCommands {
                timeout: Duration::from_secs(30),
                ..PoolCommands::default()
            },
        }
    }
}
