//! What happened, for `lbctl events`: a ring of the latest events, in which a repetition is counted and not
//! listed again. Pure: it is handed the time.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Events kept. A director that is well makes a few a day; one whose peer flaps makes one a second, and then
/// a quarter of an hour is enough to see what came first.
const KEPT: usize = 1024;
/// A disagreement that was quiet for this long is news again: ten minutes.
const QUIET_MS: u64 = 600_000;
/// Disagreements whose counts are remembered: more than 255 instances have that are all at odds with everybody.
/// Beyond that all are forgotten, and reported once more if they go on.
const REMEMBERED: usize = 65_536;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The daemon itself.
    Daemon,
    /// A VRRP instance changed its state.
    Vrrp,
    /// Something was heard that should not be.
    Disagreement,
    /// A real server went up or down.
    Health,
    /// Something that an instance watches went up or down.
    Track,
    /// The configuration was read again.
    Reload,
    /// The data plane was given another configuration.
    DataPlane,
    /// An operator gave an order.
    Operator,
}

impl Kind {
    /// Its name, as in the documents.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Daemon => "daemon",
            Kind::Vrrp => "vrrp",
            Kind::Disagreement => "disagreement",
            Kind::Health => "health",
            Kind::Track => "track",
            Kind::Reload => "reload",
            Kind::DataPlane => "data_plane",
            Kind::Operator => "operator",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1, since the daemon started.
    pub id: u64,
    /// When it happened first, in milliseconds since 1970.
    pub at_ms: u64,
    /// When it happened last.
    pub last_ms: u64,
    /// How often.
    pub count: u64,
    /// What it is about.
    pub kind: Kind,
    /// Instance, interface, service or file.
    pub subject: String,
    /// What happened.
    pub text: String,
    /// The other router, if one has to do with it.
    pub peer: Option<String>,
}

/// Some events.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventPage {
    /// When the daemon started, in milliseconds since 1970: ids of another start mean something else.
    pub started_ms: u64,
    /// Id of the latest event; 0 without one.
    pub latest: u64,
    /// Events after the one asked for that are not kept any more.
    pub lost: u64,
    /// The others, oldest first.
    pub events: Vec<Event>,
}

/// What is known of a disagreement: how often it was counted, and the event that tells of it.
#[derive(Debug)]
struct Counted {
    total: u64,
    grew_ms: u64,
    event: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Events {
    started_ms: u64,
    ring: VecDeque<Event>,
    latest: u64,
    counted: HashMap<(String, String, Option<String>), Counted>,
}

impl Events {
    /// An empty ring of a daemon that starts now.
    pub fn new(now_ms: u64) -> Self {
        Self {
            started_ms: now_ms,
            ring: VecDeque::with_capacity(KEPT),
            latest: 0,
            counted: HashMap::new(),
        }
    }

    /// Notes an event. The same as the latest one only adds to its count.
    pub fn note(
        &mut self,
        now_ms: u64,
        kind: Kind,
        subject: &str,
        text: impl Into<String>,
        peer: Option<String>,
    ) {
        let text = text.into();
        if let Some(last) = self.ring.back_mut()
            && last.kind == kind
            && last.subject == subject
            && last.text == text
            && last.peer == peer
        {
            last.count += 1;
            last.last_ms = now_ms;
            return;
        }
        self.push(now_ms, 1, kind, subject.to_owned(), text, peer);
    }

    /// Follows the count of a disagreement. Says whether it is news: the first, or the first after it was
    /// quiet for long; then there is an event of it, and otherwise the event's count grows.
    pub fn disagreement(
        &mut self,
        now_ms: u64,
        subject: &str,
        text: &str,
        peer: Option<String>,
        total: u64,
    ) -> bool {
        let key = (subject.to_owned(), text.to_owned(), peer.clone());
        let before = self.counted.get(&key).map_or(0, |known| known.total);
        // An instance that is made anew counts from zero.
        let grown = match total >= before {
            true => total - before,
            false => total,
        };
        if grown == 0 {
            return false;
        }
        if let Some(known) = self.counted.get_mut(&key) {
            known.total = total;
            let was_quiet = now_ms.saturating_sub(known.grew_ms) > QUIET_MS;
            known.grew_ms = now_ms;
            let id = known.event;
            if !was_quiet && let Some(event) = self.find(id) {
                event.count += grown;
                event.last_ms = now_ms;
                return false;
            }
        }
        let subject = subject.to_owned();
        let kind = Kind::Disagreement;
        self.push(now_ms, grown, kind, subject, text.to_owned(), peer);
        if self.counted.len() >= REMEMBERED {
            self.counted.clear();
        }
        let known = Counted {
            total,
            grew_ms: now_ms,
            event: self.latest,
        };
        self.counted.insert(key, known);
        true
    }

    /// Those after an id.
    pub fn since(&self, id: u64) -> EventPage {
        let first = self.ring.front().map_or(self.latest + 1, |event| event.id);
        EventPage {
            started_ms: self.started_ms,
            latest: self.latest,
            lost: first
                .saturating_sub(id + 1)
                .min(self.latest.saturating_sub(id)),
            events: self.ring.iter().filter(|e| e.id > id).cloned().collect(),
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Event> {
        let first = self.ring.front()?.id;
        let index = usize::try_from(id.checked_sub(first)?).ok()?;
        self.ring.get_mut(index)
    }

    fn push(
        &mut self,
        now_ms: u64,
        count: u64,
        kind: Kind,
        subject: String,
        text: String,
        peer: Option<String>,
    ) {
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.latest += 1;
        self.ring.push_back(Event {
            id: self.latest,
            at_ms: now_ms,
            last_ms: now_ms,
            count,
            kind,
            subject,
            text,
            peer,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Option<String> {
        Some("10.1.15.44".to_owned())
    }

    #[test]
    fn repetitions_are_counted() {
        let mut events = Events::new(1);
        for (at, text) in [(10, "up"), (20, "up"), (30, "down"), (40, "up")] {
            events.note(at, Kind::Health, "TCP 10.1.15.50:80", text, None);
        }
        let page = events.since(0);
        let seen: Vec<_> = page
            .events
            .iter()
            .map(|e| (e.id, e.at_ms, e.last_ms, e.count, e.text.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                (1, 10, 20, 2, "up"),
                (2, 30, 30, 1, "down"),
                (3, 40, 40, 1, "up")
            ]
        );
        assert_eq!((page.started_ms, page.latest, page.lost), (1, 3, 0));
        assert_eq!(events.since(2).events.len(), 1);
        assert_eq!(events.since(3).events, []);
    }

    #[test]
    fn a_disagreement_is_news_once_until_it_was_quiet() {
        let mut events = Events::new(0);
        let mut tell =
            |now, total| events.disagreement(now, "VI_1", "has another key", peer(), total);
        assert!(tell(1_000, 1));
        assert!(!tell(2_000, 1), "nothing new");
        assert!(!tell(3_000, 4));
        assert!(tell(3_001 + QUIET_MS, 5), "after a pause");
        assert!(tell(3_002 + 2 * QUIET_MS, 2), "an instance that began anew");
        let counts: Vec<_> = events.since(0).events.iter().map(|e| e.count).collect();
        assert_eq!(counts, [4, 1, 2]);
        assert!(events.disagreement(1, "VI_2", "has another key", peer(), 1));
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_lost() {
        let mut events = Events::new(0);
        assert_eq!(events.since(0).lost, 0);
        for number in 0..KEPT as u64 + 100 {
            events.note(number, Kind::Vrrp, "VI_1", number.to_string(), None);
        }
        let page = events.since(50);
        assert_eq!((page.events.len(), page.lost), (KEPT, 50));
        assert_eq!(page.events[0].id, 101);
        // An event that is gone does not lose its count to another.
        assert!(events.disagreement(1, "VI_1", "odd", None, 1));
        for number in 0..KEPT as u64 {
            events.note(number, Kind::Vrrp, "VI_1", number.to_string(), None);
        }
        assert!(events.disagreement(2, "VI_1", "odd", None, 2));
    }
}
