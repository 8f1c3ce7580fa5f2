//! Parts of a VRRP instance as written: its keys, and when it announces its addresses.

use std::time::Duration;

use crate::config::reader::{At, Fields};

pub struct RawHmac {
    pub keys: Vec<At<RawHmacKey>>,
    pub active_key: Option<At<i64>>,
    pub anti_replay: Option<At<String>>,
    pub time_window: Option<At<Duration>>,
    pub mode: Option<At<String>>,
}

pub struct RawHmacKey {
    pub id: Option<At<i64>>,
    pub value: Option<At<String>>,
    pub file: Option<At<String>>,
}

#[derive(Default)]
pub struct RawAnnounce {
    pub master_repeat: Option<At<i64>>,
    pub repeat_interval: Option<At<Duration>>,
    pub master_delay: Option<At<Duration>>,
    pub master_refresh: Option<At<Duration>>,
    pub master_refresh_repeat: Option<At<i64>>,
    pub lower_prio_repeat: Option<At<i64>>,
    pub lower_prio_delay: Option<At<Duration>>,
    pub garp_interval: Option<At<Duration>>,
    pub gna_interval: Option<At<Duration>>,
}

pub fn hmac(fields: &mut Fields<'_, '_>) -> RawHmac {
    let raw = RawHmac {
        keys: fields.tables("key", hmac_key),
        active_key: fields.integer("active_key"),
        anti_replay: fields.string("anti_replay"),
        time_window: fields.duration("time_window"),
        mode: fields.string("mode"),
    };
    if !fields.was_given("key") {
        fields.missing("key", "a table [[vrrp.auth_hmac.key]] for each key");
    }
    if !fields.was_given("active_key") {
        fields.missing(
            "active_key",
            "the id of the key that adverts are signed with",
        );
    }
    raw
}

fn hmac_key(fields: &mut Fields<'_, '_>) -> RawHmacKey {
    let raw = RawHmacKey {
        id: fields.integer("id"),
        value: fields.string("value"),
        file: fields.string("file"),
    };
    if !fields.was_given("id") {
        fields.missing("id", "1 to 255, the same on all directors");
    }
    if fields.was_given("value") == fields.was_given("file") {
        fields.missing("value", "or `file`, and not both");
    }
    raw
}

/// The keys stand in the instance's own table, under keepalived's names.
pub fn announce(fields: &mut Fields<'_, '_>) -> RawAnnounce {
    RawAnnounce {
        master_repeat: fields.integer("garp_master_repeat"),
        repeat_interval: fields.duration("garp_repeat_interval"),
        master_delay: fields.duration("garp_master_delay"),
        master_refresh: fields.duration("garp_master_refresh"),
        master_refresh_repeat: fields.integer("garp_master_refresh_repeat"),
        lower_prio_repeat: fields.integer("garp_lower_prio_repeat"),
        lower_prio_delay: fields.duration("garp_lower_prio_delay"),
        garp_interval: fields.duration("garp_interval"),
        gna_interval: fields.duration("gna_interval"),
    }
}
