//! What instances watch, as written.

use std::time::Duration;

use crate::config::reader::{At, Fields};

pub struct RawTrackScript {
    pub name: Option<At<String>>,
    pub command: Option<At<Vec<String>>>,
    pub user: Option<At<String>>,
    pub interval: Option<At<Duration>>,
    pub timeout: Option<At<Duration>>,
    pub rise: Option<At<i64>>,
    pub fall: Option<At<i64>>,
    pub initial: Option<At<String>>,
}

pub struct RawTrackProcess {
    pub name: Option<At<String>>,
    pub process: Option<At<Vec<String>>>,
    pub command_line: Option<At<bool>>,
    pub param_match: Option<At<String>>,
    pub quorum: Option<At<i64>>,
    pub quorum_max: Option<At<i64>>,
    pub interval: Option<At<Duration>>,
    pub delay: Option<At<Duration>>,
    pub fork_delay: Option<At<Duration>>,
    pub terminate_delay: Option<At<Duration>>,
    pub restart: Option<At<Vec<String>>>,
    pub restart_user: Option<At<String>>,
    pub restart_interval: Option<At<Duration>>,
    pub restart_tries: Option<At<i64>>,
    pub restart_timeout: Option<At<Duration>>,
}

pub struct RawTrackFile {
    pub name: Option<At<String>>,
    pub file: Option<At<String>>,
    pub weight: Option<At<i64>>,
    pub init_file: Option<At<i64>>,
    pub init_overwrite: Option<At<bool>>,
}

pub struct RawTrack {
    pub script: Option<At<String>>,
    pub interface: Option<At<String>>,
    pub process: Option<At<String>>,
    pub file: Option<At<String>>,
    pub route: Option<At<String>>,
    pub via: Option<At<String>>,
    pub dev: Option<At<String>>,
    pub table: Option<At<i64>>,
    pub service: Option<At<String>>,
    pub quorum: Option<At<i64>>,
    pub weight: Option<At<i64>>,
}

#[derive(Default)]
pub struct RawLinkDamping {
    pub up_delay: Option<At<Duration>>,
    pub flaps: Option<At<i64>>,
    pub window: Option<At<Duration>>,
    pub hold: Option<At<Duration>>,
    pub hold_max: Option<At<Duration>>,
}

pub(super) fn track_script(fields: &mut Fields<'_, '_>) -> RawTrackScript {
    let raw = RawTrackScript {
        name: fields.string("name"),
        command: fields.command("command"),
        user: fields.string("user"),
        interval: fields.duration("interval"),
        timeout: fields.duration("timeout"),
        rise: fields.integer("rise"),
        fall: fields.integer("fall"),
        initial: fields.string("initial"),
    };
    require(
        fields,
        "command",
        "a program with its arguments, such as \"/usr/bin/pgrep nginx\"",
    );
    raw
}

pub(super) fn track_process(fields: &mut Fields<'_, '_>) -> RawTrackProcess {
    let raw = RawTrackProcess {
        name: fields.string("name"),
        process: fields.command("process"),
        command_line: fields.boolean("command_line"),
        param_match: fields.string("param_match"),
        quorum: fields.integer("quorum"),
        quorum_max: fields.integer("quorum_max"),
        interval: fields.duration("interval"),
        delay: fields.duration("delay"),
        fork_delay: fields.duration("fork_delay"),
        terminate_delay: fields.duration("terminate_delay"),
        restart: fields.command("restart"),
        restart_user: fields.string("restart_user"),
        restart_interval: fields.duration("restart_interval"),
        restart_tries: fields.integer("restart_tries"),
        restart_timeout: fields.duration("restart_timeout"),
    };
    require(fields, "process", "a name, such as \"nginx\"");
    raw
}

pub(super) fn track_file(fields: &mut Fields<'_, '_>) -> RawTrackFile {
    let raw = RawTrackFile {
        name: fields.string("name"),
        file: fields.string("file"),
        weight: fields.integer("weight"),
        init_file: fields.integer("init_file"),
        init_overwrite: fields.boolean("init_overwrite"),
    };
    require(
        fields,
        "file",
        "the path of a file that holds a number, such as \"/run/lbd/fitness\"",
    );
    raw
}

fn require(fields: &mut Fields<'_, '_>, key: &'static str, help: &str) {
    for (key, help) in [("name", "by which [[vrrp.track]] names it"), (key, help)] {
        if !fields.was_given(key) {
            fields.missing(key, help);
        }
    }
}

pub(super) fn track(fields: &mut Fields<'_, '_>) -> RawTrack {
    RawTrack {
        script: fields.string("script"),
        interface: fields.string("interface"),
        process: fields.string("process"),
        file: fields.string("file"),
        route: fields.string("route"),
        via: fields.string("via"),
        dev: fields.string("dev"),
        table: fields.integer("table"),
        service: fields.string("service"),
        quorum: fields.integer("quorum"),
        weight: fields.integer("weight"),
    }
}

pub(super) fn link_damping(fields: &mut Fields<'_, '_>) -> RawLinkDamping {
    RawLinkDamping {
        up_delay: fields.duration("link_up_delay"),
        flaps: fields.integer("link_flaps"),
        window: fields.duration("link_flap_window"),
        hold: fields.duration("link_hold"),
        hold_max: fields.duration("link_hold_max"),
    }
}
