//! What `[[service]]` and `[[service.backend]]` say of failing real servers, as written.

use std::time::Duration;

use crate::config::reader::{At, Fields};

/// Keys of a service.
#[derive(Default)]
pub struct RawPool {
    pub quorum: Option<At<i64>>,
    pub hysteresis: Option<At<i64>>,
    pub alpha: Option<At<bool>>,
    pub omega: Option<At<bool>>,
    pub panic_threshold: Option<At<i64>>,
    pub panic_window: Option<At<Duration>>,
    pub slow_start: Option<At<Duration>>,
    pub on_down: Option<At<String>>,
    pub check_on_backup: Option<At<bool>>,
    pub quorum_up: Option<At<Vec<String>>>,
    pub quorum_down: Option<At<Vec<String>>>,
    pub notify: Option<At<Vec<String>>>,
    pub notify_timeout: Option<At<Duration>>,
}

/// Keys of a real server; those of the service are its defaults.
#[derive(Default)]
pub struct RawMember {
    pub inhibit_on_failure: Option<At<bool>>,
    pub notify_up: Option<At<Vec<String>>>,
    pub notify_down: Option<At<Vec<String>>>,
}

pub fn pool(fields: &mut Fields<'_, '_>) -> RawPool {
    RawPool {
        quorum: fields.integer("quorum"),
        hysteresis: fields.integer("hysteresis"),
        alpha: fields.boolean("alpha"),
        omega: fields.boolean("omega"),
        panic_threshold: fields.integer("panic_threshold"),
        panic_window: fields.duration("panic_window"),
        slow_start: fields.duration("slow_start"),
        on_down: fields.string("on_down"),
        check_on_backup: fields.boolean("check_on_backup"),
        quorum_up: fields.command("quorum_up"),
        quorum_down: fields.command("quorum_down"),
        notify: fields.command("notify"),
        notify_timeout: fields.duration("notify_timeout"),
    }
}

pub fn member(fields: &mut Fields<'_, '_>) -> RawMember {
    RawMember {
        inhibit_on_failure: fields.boolean("inhibit_on_failure"),
        notify_up: fields.command("notify_up"),
        notify_down: fields.command("notify_down"),
    }
}
