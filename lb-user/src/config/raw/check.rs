//! `[service.check]` and `[service.backend.check]` as written.

use std::{ops::Range, time::Duration};

use crate::config::reader::{At, Fields};

/// A check of any type. Which keys belong to which type is for the validation to say.
pub struct RawCheck {
    pub kind: Option<At<String>>,
    pub target: Option<At<String>>,
    pub address: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub source_address: Option<At<String>>,
    pub connect_timeout: Option<At<Duration>>,
    pub tls_timeout: Option<At<Duration>>,
    pub answer_timeout: Option<At<Duration>>,
    pub timeout: Option<At<Duration>>,
    pub interval: Option<At<Duration>>,
    pub rising_interval: Option<At<Duration>>,
    pub down_interval: Option<At<Duration>>,
    pub rise: Option<At<i64>>,
    pub fall: Option<At<i64>>,
    pub retries: Option<At<i64>>,
    pub delay_before_retry: Option<At<Duration>>,
    pub warmup: Option<At<Duration>>,
    pub jitter: Option<At<i64>>,
    pub http: RawHttp,
    pub tls: RawTls,
    pub dns: RawDns,
    pub grpc_service: Option<At<String>>,
    pub helo: Option<At<String>>,
    pub payload: Option<At<String>>,
    pub reply: Option<At<String>>,
    pub command: Option<At<Vec<String>>>,
    pub dynamic_weight: Option<At<bool>>,
    pub send: Option<At<String>>,
    pub on_silence: Option<At<String>>,
    pub file: Option<At<String>>,
    /// Keys that were given and belong to some types only.
    pub particular: Vec<(&'static str, Range<usize>)>,
}

/// Keys of checks over HTTP.
pub struct RawHttp {
    pub version: Option<At<String>>,
    pub urls: Vec<At<RawUrl>>,
    /// The only request, where `urls` is empty.
    pub url: RawUrl,
}

/// A request and what its answer must be.
pub struct RawUrl {
    pub method: Option<At<String>>,
    pub path: Option<At<String>>,
    pub host: Option<At<String>>,
    pub status: Option<At<Vec<At<String>>>>,
    pub status_drain: Option<At<Vec<At<String>>>>,
    pub body: Option<At<String>>,
    pub body_sha256: Option<At<String>>,
}

/// Keys of checks by DNS.
pub struct RawDns {
    pub name: Option<At<String>>,
    pub record: Option<At<String>>,
    pub expect: Option<At<Vec<At<String>>>>,
    pub recursion: Option<At<bool>>,
}

/// Keys of checks over TLS.
pub struct RawTls {
    pub tls: Option<At<bool>>,
    pub starttls: Option<At<bool>>,
    pub server_name: Option<At<String>>,
    pub verify: Option<At<bool>>,
    pub ca_file: Option<At<String>>,
}

pub fn check(fields: &mut Fields<'_, '_>) -> RawCheck {
    let mut keys = Particular::default();
    let raw = RawCheck {
        kind: fields.string("type"),
        target: fields.string("target"),
        address: fields.string("address"),
        port: fields.integer("port"),
        source_address: fields.string("source_address"),
        connect_timeout: keys.note("connect_timeout", fields.duration("connect_timeout")),
        tls_timeout: keys.note("tls_timeout", fields.duration("tls_timeout")),
        answer_timeout: keys.note("answer_timeout", fields.duration("answer_timeout")),
        timeout: fields.duration("timeout"),
        interval: fields.duration("interval"),
        rising_interval: fields.duration("rising_interval"),
        down_interval: fields.duration("down_interval"),
        rise: fields.integer("rise"),
        fall: fields.integer("fall"),
        retries: fields.integer("retries"),
        delay_before_retry: fields.duration("delay_before_retry"),
        warmup: fields.duration("warmup"),
        jitter: fields.integer("jitter"),
        http: RawHttp {
            version: keys.note("http_version", fields.string("http_version")),
            urls: keys.note_all(
                "url",
                fields.tables("url", |fields| url(fields, &mut Particular::default())),
            ),
            url: url(fields, &mut keys),
        },
        tls: RawTls {
            tls: keys.note("tls", fields.boolean("tls")),
            starttls: keys.note("starttls", fields.boolean("starttls")),
            server_name: keys.note("server_name", fields.string("server_name")),
            verify: keys.note("verify", fields.boolean("verify")),
            ca_file: keys.note("ca_file", fields.string("ca_file")),
        },
        dns: RawDns {
            name: keys.note("name", fields.string("name")),
            record: keys.note("record", fields.string("record")),
            expect: keys.note("expect", fields.words("expect")),
            recursion: keys.note("recursion", fields.boolean("recursion")),
        },
        grpc_service: keys.note("grpc_service", fields.string("grpc_service")),
        helo: keys.note("helo", fields.string("helo")),
        payload: keys.note("payload", fields.string("payload")),
        reply: keys.note("reply", fields.string("reply")),
        command: keys.note("command", fields.command("command")),
        dynamic_weight: keys.note("dynamic_weight", fields.boolean("dynamic_weight")),
        send: keys.note("send", fields.string("send")),
        on_silence: keys.note("on_silence", fields.string("on_silence")),
        file: keys.note("file", fields.string("file")),
        particular: Vec::new(),
    };
    if !fields.was_given("type") {
        fields.missing("type", "what is asked, such as \"http\" or \"tcp\"");
    }
    RawCheck {
        particular: keys.0,
        ..raw
    }
}

fn url(fields: &mut Fields<'_, '_>, keys: &mut Particular) -> RawUrl {
    RawUrl {
        method: keys.note("method", fields.string("method")),
        path: keys.note("path", fields.string("path")),
        host: keys.note("host", fields.string("host")),
        status: keys.note("status", fields.words("status")),
        status_drain: keys.note("status_drain", fields.words("status_drain")),
        body: keys.note("body", fields.string("body")),
        body_sha256: keys.note("body_sha256", fields.string("body_sha256")),
    }
}

/// Keys that were given, and where.
#[derive(Default)]
struct Particular(Vec<(&'static str, Range<usize>)>);

impl Particular {
    fn note<T>(&mut self, key: &'static str, field: Option<At<T>>) -> Option<At<T>> {
        if let Some(at) = &field {
            self.0.push((key, at.span.clone()));
        }
        field
    }

    fn note_all<T>(&mut self, key: &'static str, fields: Vec<At<T>>) -> Vec<At<T>> {
        if let Some(at) = fields.first() {
            self.0.push((key, at.span.clone()));
        }
        fields
    }
}
