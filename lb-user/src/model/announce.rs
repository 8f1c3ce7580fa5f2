//! When a master announces its addresses, in keepalived's terms.

use std::time::Duration;

/// When a master tells the network where its addresses are: by gratuitous ARP, and by unsolicited
/// neighbour advertisements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceTiming {
    /// Rounds of a new master's batch; a round announces every address once. 1 to 100.
    pub master_repeat: u32,
    /// Between the rounds of a batch. A switch whose port has just come up, or a lost frame, then costs a
    /// round and not the batch.
    pub repeat_interval: Duration,
    /// When a new master's batch is repeated; zero: never.
    pub master_delay: Duration,
    /// How often a master announces for whoever missed the rest; zero: never.
    pub refresh: Duration,
    /// Rounds of that. 1 to 100.
    pub refresh_repeat: u32,
    /// Rounds after an advert of lower priority; 0: none.
    pub lower_prio_repeat: u32,
    /// When that batch is repeated; zero: never.
    pub lower_prio_delay: Duration,
    /// Least time between two gratuitous ARP of one interface, up to a second.
    pub arp_interval: Duration,
    /// The same for neighbour advertisements.
    pub na_interval: Duration,
}

impl Default for AnnounceTiming {
    /// keepalived's, but for the time between rounds (keepalived sends them all at once) and the refresh
    /// (keepalived has none).
    fn default() -> Self {
        Self {
            master_repeat: 5,
            repeat_interval: Duration::from_millis(500),
            master_delay: Duration::from_secs(5),
            refresh: Duration::from_secs(60),
            refresh_repeat: 1,
            lower_prio_repeat: 5,
            lower_prio_delay: Duration::from_secs(5),
            arp_interval: Duration::ZERO,
            na_interval: Duration::ZERO,
        }
    }
}
