//! When a master announces its addresses.

use std::time::Duration;

use super::{Validator, values::DAY};
use crate::{
    config::{raw::vrrp::RawAnnounce, reader::At},
    model::AnnounceTiming,
};

/// More rounds in one batch than this help nobody.
const MAX_REPEAT: i64 = 100;
/// Slower than this, the last addresses of a long list would be announced when clients have given up.
const MAX_FRAME_INTERVAL: Duration = Duration::from_secs(1);

impl Validator<'_> {
    pub(super) fn announce(&mut self, raw: RawAnnounce) -> AnnounceTiming {
        let standard = AnnounceTiming::default();
        let master_repeat = self.rounds(
            raw.master_repeat,
            "garp_master_repeat",
            1,
            standard.master_repeat,
        );
        let master_delay = self.wait(raw.master_delay, "garp_master_delay", standard.master_delay);
        AnnounceTiming {
            master_repeat,
            repeat_interval: self.duration(
                raw.repeat_interval,
                "garp_repeat_interval",
                Duration::ZERO..=Duration::from_secs(60),
                standard.repeat_interval,
            ),
            master_delay,
            refresh: self.wait(raw.master_refresh, "garp_master_refresh", standard.refresh),
            refresh_repeat: self.rounds(
                raw.master_refresh_repeat,
                "garp_master_refresh_repeat",
                1,
                standard.refresh_repeat,
            ),
            // As keepalived does, the defaults are those of a new master.
            lower_prio_repeat: self.rounds(
                raw.lower_prio_repeat,
                "garp_lower_prio_repeat",
                0,
                master_repeat,
            ),
            lower_prio_delay: self.wait(
                raw.lower_prio_delay,
                "garp_lower_prio_delay",
                master_delay,
            ),
            arp_interval: self.between_frames(raw.garp_interval, "garp_interval"),
            na_interval: self.between_frames(raw.gna_interval, "gna_interval"),
        }
    }

    fn rounds(&mut self, raw: Option<At<i64>>, key: &str, least: i64, default: u32) -> u32 {
        let number = self.number(raw, key, least..=MAX_REPEAT, i64::from(default), |_, _| {});
        u32::try_from(number).unwrap_or(default)
    }

    fn wait(&mut self, raw: Option<At<Duration>>, key: &str, default: Duration) -> Duration {
        self.duration(raw, key, Duration::ZERO..=DAY, default)
    }

    fn between_frames(&mut self, raw: Option<At<Duration>>, key: &str) -> Duration {
        self.duration(
            raw,
            key,
            Duration::ZERO..=MAX_FRAME_INTERVAL,
            Duration::ZERO,
        )
    }
}
