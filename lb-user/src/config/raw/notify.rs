//! Notifications as written.

use std::time::Duration;

use crate::config::reader::{At, Fields};

/// Scripts of an instance or of a sync group.
#[derive(Default)]
pub struct RawScripts {
    pub master: Option<At<Vec<String>>>,
    pub backup: Option<At<Vec<String>>>,
    pub fault: Option<At<Vec<String>>>,
    pub stop: Option<At<Vec<String>>>,
    pub any: Option<At<Vec<String>>>,
    pub timeout: Option<At<Duration>>,
}

pub struct RawSyncGroup {
    pub name: Option<At<String>>,
    pub scripts: RawScripts,
    pub mail: Option<At<bool>>,
}

pub struct RawMail {
    pub server: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub hello: Option<At<String>>,
    pub from: Option<At<String>>,
    pub to: Option<At<Vec<At<String>>>>,
    pub tls: Option<At<String>>,
    pub ca_file: Option<At<String>>,
    pub user: Option<At<String>>,
    pub password: Option<At<String>>,
    pub password_file: Option<At<String>>,
    pub timeout: Option<At<Duration>>,
    pub faults: Option<At<bool>>,
}

pub fn scripts(fields: &mut Fields<'_, '_>) -> RawScripts {
    RawScripts {
        master: fields.command("notify_master"),
        backup: fields.command("notify_backup"),
        fault: fields.command("notify_fault"),
        stop: fields.command("notify_stop"),
        any: fields.command("notify"),
        timeout: fields.duration("notify_timeout"),
    }
}

pub fn sync_group(fields: &mut Fields<'_, '_>) -> RawSyncGroup {
    let raw = RawSyncGroup {
        name: fields.string("name"),
        scripts: scripts(fields),
        mail: fields.boolean("mail"),
    };
    if !fields.was_given("name") {
        fields.missing("name", "as `sync_group` of the instances names it");
    }
    raw
}

pub fn mail(fields: &mut Fields<'_, '_>) -> RawMail {
    let raw = RawMail {
        server: fields.string("server"),
        port: fields.integer("port"),
        hello: fields.string("hello"),
        from: fields.string("from"),
        to: fields.strings("to"),
        tls: fields.string("tls"),
        ca_file: fields.string("ca_file"),
        user: fields.string("user"),
        password: fields.string("password"),
        password_file: fields.string("password_file"),
        timeout: fields.duration("timeout"),
        faults: fields.boolean("faults"),
    };
    for (key, help) in [
        ("server", "name or address of the mail server"),
        ("from", "the sender, such as \"lbd@example.net\""),
        ("to", "the recipients, such as [\"ops@example.net\"]"),
    ] {
        if !fields.was_given(key) {
            fields.missing(key, help);
        }
    }
    raw
}
