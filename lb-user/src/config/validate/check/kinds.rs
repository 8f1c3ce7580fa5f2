//! The types of health checks: which keys belong to which, and what each makes of its own.

use std::{ops::Range, path::PathBuf};

use super::Validator;
use crate::{
    config::{
        raw::{RawCheck, RawDns, RawTls},
        reader::At,
    },
    model::{
        AgentCheck, CheckKind, DnsCheck, ExecCheck, GrpcCheck, Pattern, RECORDS, SmtpCheck, Tls,
        UdpCheck,
    },
};

/// Longest payload and pattern of a UDP check, in bytes: what one Ethernet frame carries.
const MAX_DATAGRAM: usize = 1_400;
/// Records that one answer must have.
const MAX_RECORDS: usize = 64;

/// The types, in the order in which they are listed to the operator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Http,
    Https,
    Tcp,
    Grpc,
    Smtp,
    Dns,
    Udp,
    Icmp,
    Exec,
    Agent,
    File,
}

pub(super) const TYPES: [(&str, Type); 11] = [
    ("http", Type::Http),
    ("https", Type::Https),
    ("tcp", Type::Tcp),
    ("grpc", Type::Grpc),
    ("smtp", Type::Smtp),
    ("dns", Type::Dns),
    ("udp", Type::Udp),
    ("icmp", Type::Icmp),
    ("exec", Type::Exec),
    ("agent", Type::Agent),
    ("file", Type::File),
];

/// The types that a key belongs to; none: it belongs to all.
pub(super) fn types_of(key: &str) -> &'static [Type] {
    use Type::{Agent, Dns, Exec, File, Grpc, Http, Https, Icmp, Smtp, Tcp, Udp};
    match key {
        "connect_timeout" => &[Tcp, Http, Https, Grpc, Smtp, Dns, Agent],
        "answer_timeout" => &[Http, Https, Grpc, Smtp, Dns, Udp, Icmp, Exec, Agent, File],
        "tls_timeout" | "server_name" | "verify" | "ca_file" => &[Https, Grpc, Smtp],
        "tls" => &[Grpc, Smtp],
        "starttls" | "helo" => &[Smtp],
        "host" => &[Http, Https, Grpc],
        "http_version" | "url" | "method" | "path" | "status" | "status_drain" | "body"
        | "body_sha256" => &[Http, Https],
        "grpc_service" => &[Grpc],
        "name" | "record" | "expect" | "recursion" => &[Dns],
        "payload" | "reply" => &[Udp],
        "command" | "dynamic_weight" => &[Exec],
        "send" | "on_silence" => &[Agent],
        "file" => &[File],
        _ => &[],
    }
}

impl Validator<'_> {
    pub(super) fn kind(&mut self, kind: Type, raw: RawCheck, span: &Range<usize>) -> CheckKind {
        match kind {
            Type::Tcp => CheckKind::Tcp,
            Type::Icmp => CheckKind::Icmp,
            Type::Http => CheckKind::Http(self.http(raw.http, None)),
            Type::Https => {
                let tls = self.tls(raw.tls);
                CheckKind::Http(self.http(raw.http, Some(tls)))
            }
            Type::Grpc => {
                let service = raw.grpc_service.filter(|at| !at.value.is_empty());
                CheckKind::Grpc(GrpcCheck {
                    service: self.text(service, "grpc_service").unwrap_or_default(),
                    host: self.text(raw.http.url.host, "host"),
                    tls: self.tls_if_wanted(raw.tls, false),
                })
            }
            Type::Smtp => {
                let starttls = raw.tls.starttls.as_ref().is_some_and(|at| at.value);
                CheckKind::Smtp(SmtpCheck {
                    helo: self.text(raw.helo, "helo"),
                    tls: self.tls_if_wanted(raw.tls, starttls),
                    starttls,
                })
            }
            Type::Dns => CheckKind::Dns(self.dns(raw.dns, span)),
            Type::Udp => CheckKind::Udp(UdpCheck {
                payload: self.payload(raw.payload),
                reply: raw.reply.and_then(|at| self.hexadecimal(&at, "reply")),
            }),
            Type::Exec => CheckKind::Exec(self.exec(raw.command, raw.dynamic_weight, span)),
            Type::Agent => {
                let known = &[("keep", false), ("down", true)];
                CheckKind::Agent(AgentCheck {
                    send: raw.send.map(|at| at.value),
                    silence_is_failure: self.choice(raw.on_silence, "on_silence", false, known),
                })
            }
            Type::File => CheckKind::File(self.words_file(raw.file, span)),
        }
    }

    /// The settings of TLS where `tls` or STARTTLS asks for it.
    fn tls_if_wanted(&mut self, raw: RawTls, starttls: bool) -> Option<Tls> {
        if starttls || raw.tls.as_ref().is_some_and(|at| at.value) {
            return Some(self.tls(raw));
        }
        let given = [
            ("server_name", raw.server_name.map(|at| at.span)),
            ("verify", raw.verify.map(|at| at.span)),
            ("ca_file", raw.ca_file.map(|at| at.span)),
        ];
        for (key, span) in given {
            if let Some(span) = span {
                self.error(&span, format!("`{key}` needs `tls = true`"), "");
            }
        }
        None
    }

    fn dns(&mut self, raw: RawDns, span: &Range<usize>) -> DnsCheck {
        if raw.name.is_none() {
            self.error(
                span,
                "a check of type \"dns\" needs `name`",
                "the name to ask for, such as \"www.example.com\"",
            );
        }
        let record = match raw.record {
            None => "A".to_owned(),
            Some(at) => {
                if !RECORDS.contains(&at.value.as_str()) {
                    let help = format!("one of {}", RECORDS.join(", "));
                    let message = format!("`record` cannot be \"{}\"", at.value);
                    self.error(&at.span, message, &help);
                }
                at.value
            }
        };
        let name = self.text(raw.name, "name").unwrap_or_default();
        let expect = raw.expect.map(|at| at.value).unwrap_or_default();
        if let Some(surplus) = expect.get(MAX_RECORDS) {
            let message = format!("more than {MAX_RECORDS} records expected");
            self.error(&surplus.span, message, "");
        }
        DnsCheck {
            name,
            record,
            expect: expect.into_iter().map(|at| at.value).collect(),
            recursion: raw.recursion.is_none_or(|at| at.value),
        }
    }

    fn payload(&mut self, raw: Option<At<String>>) -> Vec<u8> {
        let Some(at) = raw else { return Vec::new() };
        let Some(pattern) = self.hexadecimal(&at, "payload") else {
            return Vec::new();
        };
        if !pattern.is_exact() {
            let message = "`payload` has a `?`, which only `reply` may have";
            self.error(&at.span, message, "");
        }
        pattern.bytes()
    }

    fn hexadecimal(&mut self, at: &At<String>, key: &str) -> Option<Pattern> {
        let pattern = Pattern::parse(&at.value).filter(|p| p.bytes().len() <= MAX_DATAGRAM);
        if pattern.is_none() {
            let help = format!("two hexadecimal digits a byte, at most {MAX_DATAGRAM} bytes");
            self.error(&at.span, format!("`{key}` is not hexadecimal"), &help);
        }
        pattern
    }

    fn exec(
        &mut self,
        command: Option<At<Vec<String>>>,
        dynamic_weight: Option<At<bool>>,
        span: &Range<usize>,
    ) -> ExecCheck {
        match &command {
            None => self.error(
                span,
                "a check of type \"exec\" needs `command`",
                "a program with its arguments, such as \"/etc/lbd/check.sh 10.1.15.45\"",
            ),
            Some(at) if !at.value.first().is_some_and(|word| word.starts_with('/')) => {
                self.error(&at.span, "`command` must begin with an absolute path", "");
            }
            Some(_) => {}
        }
        ExecCheck {
            command: command.map(|at| at.value).unwrap_or_default(),
            dynamic_weight: dynamic_weight.is_some_and(|at| at.value),
        }
    }

    fn words_file(&mut self, raw: Option<At<String>>, span: &Range<usize>) -> PathBuf {
        if raw.is_none() {
            let message = "a check of type \"file\" needs `file`";
            self.error(span, message, "the file that says how the real server is");
        }
        self.path(raw, "file", "/")
    }
}
