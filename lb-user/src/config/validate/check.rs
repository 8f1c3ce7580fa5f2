//! Health checks: what all of them have, and those over HTTP. `kinds` has the other types.

mod kinds;

use std::{net::IpAddr, ops::Range, time::Duration};

use self::kinds::{TYPES, Type, types_of};
use super::Validator;
use crate::{
    config::{
        raw::{RawCheck, RawHttp, RawTls, RawUrl},
        reader::At,
    },
    model::{
        BodyRule, Check, CheckKind, HttpCheck, HttpRequest, HttpVersion, Limits, Pattern, Timing,
        Tls,
    },
};

/// More would not be a check any more: each request costs a connection.
const MAX_URLS: usize = 16;
/// Longest path, host or expression, in bytes: what servers take for a request line.
const MAX_TEXT: usize = 4_096;
const HOUR: Duration = Duration::from_secs(3_600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Checks that begin together are spread over two seconds at most, so that a start soon tells who is
/// alive.
const DEFAULT_WARMUP: Duration = Duration::from_secs(2);

impl Validator<'_> {
    pub(super) fn health_check(&mut self, mut raw: RawCheck, span: &Range<usize>) -> Check {
        let kind = self.choice(raw.kind.take(), "type", Type::Tcp, &TYPES);
        self.only_of(kind, &raw.particular);
        let limits = self.limits(
            raw.connect_timeout.take(),
            raw.tls_timeout.take(),
            raw.answer_timeout.take(),
            raw.timeout.take(),
        );
        let interval = self.interval(raw.interval.take(), "interval", Duration::from_secs(5));
        let down_interval = self.interval(raw.down_interval.take(), "down_interval", interval);
        let retries = self.number(raw.retries.take(), "retries", 0..=100, 1, |_, _| {});
        let warmup = interval.min(DEFAULT_WARMUP);
        let range = Duration::ZERO..=HOUR;
        let timing = Timing {
            interval,
            rising_interval: self.interval(
                raw.rising_interval.take(),
                "rising_interval",
                down_interval,
            ),
            down_interval,
            rise: self.small(raw.rise.take(), "rise", 1..=255, 1).into(),
            fall: self.small(raw.fall.take(), "fall", 1..=255, 1).into(),
            retries: u32::try_from(retries).unwrap_or(1),
            delay_before_retry: self.duration(
                raw.delay_before_retry.take(),
                "delay_before_retry",
                range.clone(),
                Duration::from_secs(1),
            ),
            warmup: self.duration(raw.warmup.take(), "warmup", range, warmup),
            jitter: self.small(raw.jitter.take(), "jitter", 0..=50, 0),
        };
        let elsewhere = raw.address.is_some() || raw.port.is_some();
        let on_vip = self.on_vip(raw.target.take(), raw.address.as_ref(), elsewhere);
        let port = raw
            .port
            .take()
            .map(|at| self.number(Some(at), "port", 1..=65_535, 1, |_, _| {}));
        let address = self.asked(raw.address.take(), "address");
        let source = self.asked(raw.source_address.take(), "source_address");
        let kind = self.kind(kind, raw, span);
        if matches!(kind, CheckKind::Agent(_)) && port.is_none() {
            let help = "the agent is another program than the service, on a port of its own";
            self.error(span, "a check of type \"agent\" needs `port`", help);
        }
        if let (Some(address), Some(source)) = (address, source)
            && address.is_ipv4() != source.is_ipv4()
        {
            let message = "`address` and `source_address` are of different versions of IP";
            self.error(span, message, "");
        }
        Check {
            kind,
            address,
            port: port.and_then(|port| u16::try_from(port).ok()),
            on_vip,
            source,
            limits,
            timing,
        }
    }

    /// Another port or address than the service's is usually not for clients, and not on the VIP.
    fn on_vip(
        &mut self,
        raw: Option<At<String>>,
        address: Option<&At<String>>,
        elsewhere: bool,
    ) -> bool {
        let span = raw.as_ref().map(|at| at.span.clone());
        let targets = &[("vip", true), ("address", false)];
        let on_vip = self.choice(raw, "target", !elsewhere, targets);
        if let (true, Some(span), Some(_)) = (on_vip, span, address) {
            let message = "`target = \"vip\"` beside an `address` of its own";
            self.error(&span, message, "leave one of them out");
        }
        on_vip
    }

    fn only_of(&mut self, kind: Type, given: &[(&'static str, Range<usize>)]) {
        for (key, span) in given {
            let types = types_of(key);
            if types.is_empty() || types.contains(&kind) {
                continue;
            }
            let names: Vec<String> = TYPES
                .iter()
                .filter(|(_, kind)| types.contains(kind))
                .map(|(name, _)| format!("\"{name}\""))
                .collect();
            let message = format!("`{key}` belongs to checks of type {}", names.join(", "));
            self.error(span, message, "");
        }
    }

    fn limits(
        &mut self,
        connect: Option<At<Duration>>,
        tls: Option<At<Duration>>,
        answer: Option<At<Duration>>,
        total: Option<At<Duration>>,
    ) -> Limits {
        let range = Duration::from_millis(10)..=HOUR;
        let connect = self.duration(connect, "connect_timeout", range.clone(), DEFAULT_TIMEOUT);
        Limits {
            connect,
            tls: self.duration(tls, "tls_timeout", range.clone(), connect),
            answer: self.duration(answer, "answer_timeout", range.clone(), connect),
            total: total.map(|at| self.duration(Some(at), "timeout", range, HOUR)),
        }
    }

    fn interval(&mut self, raw: Option<At<Duration>>, key: &str, default: Duration) -> Duration {
        self.duration(raw, key, Duration::from_millis(100)..=HOUR, default)
    }

    fn asked(&mut self, raw: Option<At<String>>, key: &str) -> Option<IpAddr> {
        let at = raw?;
        let address = self.ip(&at, key);
        if address.is_multicast() {
            let message = format!("{address} is a multicast address");
            self.error(&at.span, message, "");
        }
        Some(address)
    }

    fn tls(&mut self, raw: RawTls) -> Tls {
        let verify = raw.verify.is_none_or(|at| at.value);
        let ca_file = raw.ca_file.map(|at| {
            if !verify {
                let message = "`ca_file` is of no use with `verify = false`";
                self.error(&at.span, message, "leave one of them out");
            }
            self.path(Some(at), "ca_file", "/")
        });
        Tls {
            server_name: self.text(raw.server_name, "server_name"),
            verify,
            ca_file,
        }
    }

    fn http(&mut self, raw: RawHttp, tls: Option<Tls>) -> HttpCheck {
        let versions = &[("1.1", HttpVersion::One), ("2", HttpVersion::Two)];
        let version = self.choice(raw.version, "http_version", HttpVersion::One, versions);
        let requests = if raw.urls.is_empty() {
            vec![self.request(raw.url)]
        } else {
            if let Some(surplus) = raw.urls.get(MAX_URLS) {
                let message = format!("more than {MAX_URLS} requests in one check");
                self.error(&surplus.span, message, "");
            }
            self.nothing_beside_urls(&raw.url);
            raw.urls
                .into_iter()
                .map(|at| self.request(at.value))
                .collect()
        };
        HttpCheck {
            tls,
            version,
            requests,
        }
    }

    fn nothing_beside_urls(&mut self, url: &RawUrl) {
        let given = [
            ("method", url.method.as_ref().map(|at| &at.span)),
            ("path", url.path.as_ref().map(|at| &at.span)),
            ("host", url.host.as_ref().map(|at| &at.span)),
            ("status", url.status.as_ref().map(|at| &at.span)),
            ("status_drain", url.status_drain.as_ref().map(|at| &at.span)),
            ("body", url.body.as_ref().map(|at| &at.span)),
            ("body_sha256", url.body_sha256.as_ref().map(|at| &at.span)),
        ];
        for (key, span) in given {
            if let Some(span) = span {
                let message = format!("`{key}` beside [[service.check.url]]");
                self.error(span, message, "put it into the tables of the requests");
            }
        }
    }

    fn request(&mut self, raw: RawUrl) -> HttpRequest {
        let method = self.text(raw.method, "method");
        let body_place = raw.body.as_ref().map(|at| at.span.clone());
        let body = match (raw.body, raw.body_sha256) {
            (Some(at), Some(_)) => {
                let message = "`body` and `body_sha256` at once";
                self.error(&at.span, message, "one of them says all");
                None
            }
            (Some(at), None) => self.expression(&at).map(BodyRule::Matches),
            (None, Some(at)) => self.sha256(&at).map(BodyRule::Sha256),
            (None, None) => None,
        };
        if let (Some("HEAD"), Some(place)) = (method.as_deref(), body_place) {
            self.error(&place, "answers to HEAD have no body", "");
        }
        HttpRequest {
            method: method.unwrap_or_else(|| "GET".to_owned()),
            path: self.url_path(raw.path),
            host: self.text(raw.host, "host"),
            status: self
                .statuses(raw.status, "status")
                .unwrap_or_else(|| vec![(200, 200)]),
            drain: self
                .statuses(raw.status_drain, "status_drain")
                .unwrap_or_default(),
            body,
        }
    }

    /// Text without blanks, for a line of a protocol.
    fn text(&mut self, raw: Option<At<String>>, key: &str) -> Option<String> {
        let at = raw?;
        let odd = |c: char| !c.is_ascii_graphic();
        if at.value.is_empty() || at.value.len() > MAX_TEXT || at.value.contains(odd) {
            let help = format!("1 to {MAX_TEXT} bytes of ASCII without blanks");
            self.error(&at.span, format!("`{key}` cannot be sent"), &help);
        }
        Some(at.value)
    }

    fn url_path(&mut self, raw: Option<At<String>>) -> String {
        let Some(at) = raw else {
            return "/".to_owned();
        };
        let odd = |c: char| !c.is_ascii_graphic() || c == '#';
        if !at.value.starts_with('/') || at.value.len() > MAX_TEXT || at.value.contains(odd) {
            self.error(
                &at.span,
                "`path` must begin with / and have no blanks",
                "other than ASCII is written with %, as in /caf%C3%A9",
            );
        }
        at.value
    }

    /// `200`, `"200-299"`, or a list of them.
    fn statuses(&mut self, raw: Option<At<Vec<At<String>>>>, key: &str) -> Option<Vec<(u16, u16)>> {
        let list = raw?;
        if list.value.is_empty() {
            self.error(
                &list.span,
                format!("`{key}` is empty"),
                "leave it out for the default",
            );
        }
        let mut ranges = Vec::with_capacity(list.value.len());
        for at in list.value {
            let (first, last) = at.value.split_once('-').unwrap_or((&at.value, &at.value));
            match (first.trim().parse(), last.trim().parse()) {
                (Ok(first), Ok(last)) if (100..=last).contains(&first) && last <= 599 => {
                    ranges.push((first, last));
                }
                _ => self.error(
                    &at.span,
                    format!("`{key}` cannot be {}", at.value),
                    "100 to 599, or a range such as \"200-299\"",
                ),
            }
        }
        Some(ranges)
    }

    fn expression(&mut self, at: &At<String>) -> Option<String> {
        if at.value.len() > MAX_TEXT {
            let message = format!("an expression of more than {MAX_TEXT} bytes");
            self.error(&at.span, message, "");
        } else if let Err(error) = regex::bytes::Regex::new(&at.value) {
            // The library draws the place below the expression; the last line says what is wrong.
            let text = error.to_string();
            let words = text.lines().last().unwrap_or_default();
            let message = format!("`body` is not a regular expression: {words}");
            self.error(
                &at.span,
                message,
                "look-around and back-references do not exist here",
            );
        }
        Some(at.value.clone())
    }

    fn sha256(&mut self, at: &At<String>) -> Option<[u8; 32]> {
        let pattern = Pattern::parse(&at.value).filter(Pattern::is_exact);
        let digest = pattern.and_then(|pattern| pattern.bytes().try_into().ok());
        if digest.is_none() {
            let help = "64 hexadecimal digits, as sha256sum prints them";
            self.error(&at.span, "`body_sha256` is no SHA-256", help);
        }
        digest
    }
}
