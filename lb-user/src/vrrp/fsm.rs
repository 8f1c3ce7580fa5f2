//! The VRRP state machine of one instance. Pure: it is handed the time and returns what to do.
//!
//! ```text
//!              Start                Timer / Start as owner
//!   INIT ───────────────► BACKUP ─────────────────────────► MASTER
//!    ▲ ▲                   │  ▲    higher priority heard      │ │
//!    │ │ Stop              │  └──────────────────────────────┘ │
//!    │ └───────────────────┤                                   │
//!    │        LinkDown     ▼  LinkUp: as Start        LinkDown │
//!    │      ┌──────────► FAULT ◄───────────────────────────────┤
//!    └──────┴──────────────────────────────────────────────────┘ Stop
//! ```
//! RFC 3768 section 6.4 and RFC 9568 section 6.4, with two deliberate additions. A master that hears a lower priority
//! announces its addresses again, as RFC 9568 section 6.4.3 asks: after a partition heals, switches
//! and clients may still point at the other one. And a master that yields sends one last advert of
//! its own: the winner usually has not heard it yet, and without that advert nobody would announce.

use std::{cmp::Ordering, net::IpAddr, time::Duration};

use crate::model::{VrrpState, VrrpVersion};

/// A point on the caller's monotonic clock.
pub type Instant = Duration;

/// What the machine must know of its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which of the two protocols.
    pub version: VrrpVersion,
    /// 1-255.
    pub priority: u8,
    /// Advertisement interval.
    pub interval: Duration,
    /// Whether a lower master is replaced.
    pub preempt: bool,
    /// How long a lower master is left in peace.
    pub preempt_delay: Duration,
    /// Our primary address, which breaks ties.
    pub source: IpAddr,
}

impl Settings {
    /// RFC 3768 section 6.1: (256 - priority) / 256 seconds. RFC 9568 section 6.1: the same share of
    /// the master's interval.
    pub fn skew(&self, master_interval: Duration) -> Duration {
        let whole = match self.version {
            VrrpVersion::V2 => Duration::from_secs(1),
            VrrpVersion::V3 => master_interval,
        };
        whole * (256 - u32::from(self.priority)) / 256
    }

    /// Three of the master's intervals and the skew.
    pub fn master_down(&self, master_interval: Duration) -> Duration {
        3 * master_interval + self.skew(master_interval)
    }

    /// How soon after an answer to a lower advert, or after a report of one, the next may follow: a flood
    /// of them costs others ten adverts an interval, and the daemon ten reports.
    pub fn pause(&self) -> Duration {
        SHORTEST_PAUSE.max(self.interval / 10)
    }

    fn is_owner(&self) -> bool {
        self.priority == 255
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The instance starts.
    Start,
    /// The instance ends.
    Stop,
    /// A valid advert arrived.
    Advert {
        /// Its priority.
        priority: u8,
        /// Its sender.
        source: IpAddr,
        /// Its sender's advertisement interval.
        interval: Duration,
    },
    /// The [deadline](Machine::deadline) has come.
    Timer,
    /// The interface cannot be used.
    LinkDown,
    /// The interface can be used again.
    LinkUp,
    /// An operator wants another master.
    Yield,
    /// Something that the instance watches is down.
    TrackDown,
    /// Everything that it watches is up again.
    TrackUp,
    /// Whoever should have woken us came this much too late, so nothing was heard in between.
    Overslept(Duration),
    /// The deadline has come, but the rest of its sync group is not ready.
    Hold,
    /// The rest of its sync group is in this state.
    Follow(VrrpState),
}

/// Why a state was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The instance started.
    Started,
    /// Priority 255.
    Owner,
    /// No advert for the master-down time.
    MasterSilent,
    /// The master said that it stops (priority 0).
    MasterStopped,
    /// Only adverts of a lower priority than ours were heard.
    Preempted,
    /// An advert of higher priority, or equal with a higher address.
    HigherPriority {
        /// Its priority.
        priority: u8,
        /// Its sender.
        source: IpAddr,
    },
    /// The interface went down or lost its address.
    LinkDown,
    /// The interface came back.
    LinkUp,
    /// Something that the instance watches is down.
    TrackDown,
    /// Everything that it watches is up again.
    TrackUp,
    /// The rest of the sync group went there.
    Group,
    /// An operator wanted another master.
    Asked,
    /// The instance stopped.
    Stopped,
}

impl Reason {
    /// The other router that it is about.
    pub fn peer(&self) -> Option<IpAddr> {
        match self {
            Reason::HigherPriority { source, .. } => Some(*source),
            Reason::Started
            | Reason::Owner
            | Reason::MasterSilent
            | Reason::MasterStopped
            | Reason::Preempted
            | Reason::LinkDown
            | Reason::LinkUp
            | Reason::TrackDown
            | Reason::TrackUp
            | Reason::Group
            | Reason::Asked
            | Reason::Stopped => None,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Started => f.write_str("started"),
            Reason::Owner => f.write_str("owner of the addresses (priority 255)"),
            Reason::MasterSilent => f.write_str("no advert from a master"),
            Reason::MasterStopped => f.write_str("the master stopped (priority 0)"),
            Reason::Preempted => f.write_str("the master has a lower priority"),
            Reason::HigherPriority { priority, source } => {
                write!(f, "{source} is master with priority {priority}")
            }
            Reason::LinkDown => {
                f.write_str("the interface is down or has no address to speak from")
            }
            Reason::LinkUp => f.write_str("the interface can be used again"),
            Reason::TrackDown => f.write_str("something that it watches is down"),
            Reason::TrackUp => f.write_str("everything that it watches is up again"),
            Reason::Group => f.write_str("with its sync group"),
            Reason::Asked => f.write_str("an operator asked for a failover"),
            Reason::Stopped => f.write_str("stopped"),
        }
    }
}

/// What to do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send an advert with this priority.
    SendAdvert(u8),
    /// Announce the addresses again.
    Announce,
    /// Tell the daemon: it acts on addresses, data plane and scripts.
    Enter(VrrpState, Reason),
}

/// At most three effects per event: nothing is allocated on the advert path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    list: [Option<Effect>; 3],
}

impl Effects {
    fn of<const N: usize>(effects: [Effect; N]) -> Self {
        const { assert!(N <= 3) };
        let mut list = [None; 3];
        for (place, effect) in list.iter_mut().zip(effects) {
            *place = Some(effect);
        }
        Self { list }
    }
}

impl IntoIterator for Effects {
    type Item = Effect;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Effect>, 3>>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter().flatten()
    }
}

/// One instance.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: VrrpState,
    deadline: Option<Instant>,
    /// What the running master-down timer means when it ends.
    waiting_for: Reason,
    /// The interval of the master that was heard last, our own before that (version 3's
    /// Master_Adver_Interval; in version 2 all are the same).
    master_interval: Duration,
    /// Whether it is another router's.
    is_learned: bool,
    /// Since when only masters of lower priority are heard.
    lower_since: Option<Instant>,
    /// When a master last answered an advert.
    answered: Option<Instant>,
    /// Whether it would have answered another since, but too soon: its next advert is the answer.
    owes_answer: bool,
}

/// A master that is woken this many intervals after its last advert was due has been given up by
/// others, who may speak by now.
const PATIENCE: u32 = 2;
/// The shortest interval that can be configured, and so what anybody may send at.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

impl Machine {
    /// A machine in INIT.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: VrrpState::Init,
            deadline: None,
            waiting_for: Reason::MasterSilent,
            master_interval: settings.interval,
            is_learned: false,
            lower_since: None,
            answered: None,
            owes_answer: false,
        }
    }

    /// The interval of the master that was heard last; our own before that.
    pub fn master_interval(&self) -> Duration {
        self.master_interval
    }

    /// Current state.
    pub fn state(&self) -> VrrpState {
        self.state
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Current settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes new settings without leaving the state. A waiting backup keeps what it already waited:
    /// its timer moves by the difference of the master-down times.
    pub fn reconfigure(&mut self, settings: Settings, now: Instant) {
        let before = self.master_interval;
        if !self.is_learned {
            self.master_interval = settings.interval;
        }
        let old = self.settings.master_down(before);
        let new = settings.master_down(self.master_interval);
        match (self.state, self.deadline) {
            (VrrpState::Backup, Some(deadline)) => {
                self.deadline = Some((deadline + new).saturating_sub(old).max(now));
            }
            (VrrpState::Master, Some(deadline)) => {
                self.deadline = Some(deadline.min(now + settings.interval));
            }
            (VrrpState::Init | VrrpState::Fault | VrrpState::Backup | VrrpState::Master, _) => {}
        }
        self.settings = settings;
    }

    /// Handles `event` at `now`.
    pub fn handle(&mut self, event: Event, now: Instant) -> Effects {
        match (self.state, event) {
            (VrrpState::Init, Event::Start) => self.begin(Reason::Started, now),
            (VrrpState::Fault, Event::LinkUp) => self.begin(Reason::LinkUp, now),
            (VrrpState::Fault, Event::TrackUp) => self.begin(Reason::TrackUp, now),

            (VrrpState::Backup, Event::Timer) => self.become_master(self.waiting_for, now),
            (
                VrrpState::Backup,
                Event::Advert {
                    priority, interval, ..
                },
            ) => {
                self.advert_in_backup(priority, interval, now);
                Effects::default()
            }

            (VrrpState::Master, Event::Timer) => self.time_to_speak(now),
            (
                VrrpState::Master,
                Event::Advert {
                    priority,
                    source,
                    interval,
                },
            ) => self.advert_in_master(priority, source, interval, now),

            (VrrpState::Master, Event::Yield) => self.give_up(Reason::Asked, now),

            (VrrpState::Backup, Event::Follow(VrrpState::Master)) => {
                self.become_master(Reason::Group, now)
            }
            (VrrpState::Master, Event::Follow(VrrpState::Backup)) => {
                self.give_up(Reason::Group, now)
            }
            (VrrpState::Fault, Event::Follow(VrrpState::Backup)) => self.begin(Reason::Group, now),
            (VrrpState::Backup | VrrpState::Master, Event::Follow(VrrpState::Fault)) => {
                self.fail(Reason::Group)
            }
            (VrrpState::Backup, Event::Hold) => {
                let wait = self.settings.master_down(self.master_interval);
                self.deadline = Some(now + wait);
                Effects::default()
            }
            (VrrpState::Backup, Event::Overslept(late)) => {
                self.slept(late);
                Effects::default()
            }
            (_, Event::Follow(_) | Event::Hold | Event::Overslept(_)) => Effects::default(),

            (VrrpState::Init | VrrpState::Backup | VrrpState::Master, Event::LinkDown) => {
                self.fail(Reason::LinkDown)
            }
            (VrrpState::Init | VrrpState::Backup | VrrpState::Master, Event::TrackDown) => {
                self.fail(Reason::TrackDown)
            }

            (VrrpState::Backup | VrrpState::Fault, Event::Stop) => {
                self.leave(VrrpState::Init);
                Effects::of([Effect::Enter(VrrpState::Init, Reason::Stopped)])
            }
            (VrrpState::Master, Event::Stop) => {
                self.leave(VrrpState::Init);
                Effects::of([
                    Effect::SendAdvert(0),
                    Effect::Enter(VrrpState::Init, Reason::Stopped),
                ])
            }

            (
                VrrpState::Init,
                Event::Stop
                | Event::Advert { .. }
                | Event::Timer
                | Event::LinkUp
                | Event::TrackUp
                | Event::Yield,
            )
            | (VrrpState::Backup, Event::Start | Event::LinkUp | Event::TrackUp | Event::Yield)
            | (VrrpState::Master, Event::Start | Event::LinkUp | Event::TrackUp)
            | (
                VrrpState::Fault,
                Event::Start
                | Event::Advert { .. }
                | Event::Timer
                | Event::LinkDown
                | Event::TrackDown
                | Event::Yield,
            ) => Effects::default(),
        }
    }

    /// RFC 3768 section 6.4.1: the owner is master at once, everybody else listens first.
    fn begin(&mut self, reason: Reason, now: Instant) -> Effects {
        self.forget_interval();
        if self.settings.is_owner() {
            return self.become_master(Reason::Owner, now);
        }
        self.listen(now);
        Effects::of([Effect::Enter(VrrpState::Backup, reason)])
    }

    /// RFC 9568 section 6.4.2; in version 2 all intervals are the same.
    fn learn_interval(&mut self, interval: Duration) {
        if self.settings.version == VrrpVersion::V3 {
            self.master_interval = interval;
            self.is_learned = true;
        }
    }

    fn forget_interval(&mut self) {
        self.master_interval = self.settings.interval;
        self.is_learned = false;
    }

    fn listen(&mut self, now: Instant) {
        self.state = VrrpState::Backup;
        self.waiting_for = Reason::MasterSilent;
        self.lower_since = None;
        self.deadline = Some(now + self.settings.master_down(self.master_interval));
    }

    /// A backup that slept has not heard its master, who may be well: time asleep is no silence.
    fn slept(&mut self, late: Duration) {
        self.deadline = self.deadline.map(|deadline| deadline + late);
    }

    /// One who slept too long listens for an interval first: whoever took over meanwhile is heard
    /// before our advert is, and the addresses are not announced twice.
    fn time_to_speak(&mut self, now: Instant) -> Effects {
        let interval = self.settings.interval;
        let late = self
            .deadline
            .map_or(Duration::ZERO, |due| now.saturating_sub(due));
        self.deadline = Some(now + interval);
        if late > PATIENCE * interval {
            return Effects::default();
        }
        if std::mem::take(&mut self.owes_answer) {
            self.answered = Some(now);
        }
        Effects::of([Effect::SendAdvert(self.settings.priority)])
    }

    /// The advert goes first, so that the old master lets go of the addresses before we announce
    /// them.
    fn become_master(&mut self, reason: Reason, now: Instant) -> Effects {
        self.state = VrrpState::Master;
        self.forget_interval();
        self.answered = None;
        self.owes_answer = false;
        self.deadline = Some(now + self.settings.interval);
        Effects::of([
            Effect::SendAdvert(self.settings.priority),
            Effect::Enter(VrrpState::Master, reason),
        ])
    }

    /// Priority 0: others need not wait.
    fn give_up(&mut self, reason: Reason, now: Instant) -> Effects {
        self.listen(now);
        Effects::of([
            Effect::SendAdvert(0),
            Effect::Enter(VrrpState::Backup, reason),
        ])
    }

    /// A master says so: others need not wait.
    fn fail(&mut self, reason: Reason) -> Effects {
        let was_master = self.state == VrrpState::Master;
        self.leave(VrrpState::Fault);
        let enter = Effect::Enter(VrrpState::Fault, reason);
        match was_master {
            true => Effects::of([Effect::SendAdvert(0), enter]),
            false => Effects::of([enter]),
        }
    }

    fn leave(&mut self, state: VrrpState) {
        self.state = state;
        self.deadline = None;
    }

    /// RFC 3768 section 6.4.2. A lower priority does not reset the timer, which then runs out and
    /// preempts; unless the delay of preemption is not over.
    fn advert_in_backup(&mut self, priority: u8, interval: Duration, now: Instant) {
        let settings = &self.settings;
        if priority == 0 {
            // Never later than before: anybody may say this again and again.
            let soon = now + settings.skew(self.master_interval);
            self.waiting_for = Reason::MasterStopped;
            self.deadline = Some(self.deadline.map_or(soon, |due| due.min(soon)));
            return;
        }
        let is_lower = priority < settings.priority;
        let since = match is_lower {
            true => *self.lower_since.get_or_insert(now),
            false => {
                self.lower_since = None;
                now
            }
        };
        let in_peace = !settings.preempt || now.saturating_sub(since) < settings.preempt_delay;
        if !is_lower || in_peace {
            self.learn_interval(interval);
            self.waiting_for = Reason::MasterSilent;
            self.deadline = Some(now + self.settings.master_down(self.master_interval));
        } else if self.waiting_for == Reason::MasterSilent {
            self.waiting_for = Reason::Preempted;
        }
    }

    /// RFC 3768 section 6.4.3.
    fn advert_in_master(
        &mut self,
        priority: u8,
        source: IpAddr,
        interval: Duration,
        now: Instant,
    ) -> Effects {
        let own = (self.settings.priority, self.settings.source);
        if priority == 0 {
            return match self.may_answer(now) {
                true => Effects::of([Effect::SendAdvert(self.settings.priority)]),
                false => Effects::default(),
            };
        }
        match (priority, source).cmp(&own) {
            Ordering::Greater => {
                self.learn_interval(interval);
                self.listen(now);
                let reason = Reason::HigherPriority { priority, source };
                Effects::of([
                    Effect::SendAdvert(self.settings.priority),
                    Effect::Enter(VrrpState::Backup, reason),
                ])
            }
            Ordering::Less => match self.may_answer(now) {
                true => Effects::of([Effect::SendAdvert(self.settings.priority), Effect::Announce]),
                false => Effects::of([Effect::Announce]),
            },
            // Our own advert, looped back by the network.
            Ordering::Equal => Effects::default(),
        }
    }

    /// Whether an answer may go out now; if not, the next advert does when it may.
    fn may_answer(&mut self, now: Instant) -> bool {
        let free = self.answered.map(|at| at + self.settings.pause());
        if let Some(free) = free.filter(|free| *free > now) {
            self.deadline = self.deadline.map(|due| due.min(free));
            self.owes_answer = true;
            return false;
        }
        self.answered = Some(now);
        self.deadline = Some(now + self.settings.interval);
        true
    }
}

#[cfg(test)]
mod tests;
