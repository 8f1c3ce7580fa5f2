//! What VRRP instances watch.

use std::{collections::HashSet, net::IpAddr, path::PathBuf, time::Duration};

use super::{Validator, values::DAY};
use crate::{
    config::{
        raw::{RawLinkDamping, RawTrack, RawTrackFile, RawTrackProcess, RawTrackScript},
        reader::At,
    },
    model::{
        InitialValue, IpPrefix, LinkDamping, ProcessPattern, Rest, Restart, TrackFile,
        TrackProcess, TrackRoute, TrackScript, Tracked, VirtualService, Watch,
    },
};

/// A priority can move by so much at most: from 254 to 1.
const MAX_WEIGHT: i64 = 253;
/// One more, as with keepalived: a file that holds -1 is then a fault.
const MAX_FILE_WEIGHT: i64 = 254;
const MAX_SCRIPTS: usize = 256;
/// Each is a bit of one word per process.
const MAX_PROCESSES: usize = 64;
/// All are read whenever one changes.
const MAX_FILES: usize = 64;
const NAME_OR_WORDS: &str = "`process` is one word, the name of a program; `command_line = true` compares program and arguments";

/// What an instance can watch by name.
pub(super) struct Known<'c> {
    pub(super) scripts: &'c [TrackScript],
    pub(super) processes: &'c [TrackProcess],
    pub(super) files: &'c [TrackFile],
    pub(super) services: &'c [VirtualService],
}

impl Validator<'_> {
    pub(super) fn track_scripts(&mut self, raw: Vec<At<RawTrackScript>>) -> Vec<TrackScript> {
        self.at_most(&raw, MAX_SCRIPTS, "track scripts");
        let mut names = HashSet::new();
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let name = self.unique(raw.name, &mut names, "track script", &span);
            let range = Duration::from_millis(100)..=DAY;
            let interval = self.duration(
                raw.interval,
                "interval",
                range.clone(),
                Duration::from_secs(1),
            );
            all.push(TrackScript {
                name,
                command: raw.command.map(|at| at.value).unwrap_or_default(),
                user: raw.user.map(|at| at.value),
                interval,
                timeout: self.duration(raw.timeout, "timeout", range, interval),
                rise: self.small(raw.rise, "rise", 1..=255, 1).into(),
                fall: self.small(raw.fall, "fall", 1..=255, 1).into(),
                initially_up: self.choice(
                    raw.initial,
                    "initial",
                    true,
                    &[("up", true), ("down", false)],
                ),
            });
        }
        all
    }

    pub(super) fn track_processes(&mut self, raw: Vec<At<RawTrackProcess>>) -> Vec<TrackProcess> {
        self.at_most(&raw, MAX_PROCESSES, "track processes");
        let mut names = HashSet::new();
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let name = self.unique(raw.name.clone(), &mut names, "track process", &span);
            all.push(self.track_process(name, raw));
        }
        all
    }

    fn track_process(&mut self, name: String, raw: RawTrackProcess) -> TrackProcess {
        let pattern = self.pattern(&raw);
        let most = raw.quorum_max.as_ref().map(|at| at.span.clone());
        let has_quorum = raw.quorum.as_ref().map(|at| at.span.clone());
        let quorum_max = raw
            .quorum_max
            .map(|at| self.count(Some(at), "quorum_max", 0));
        let least = u32::from(quorum_max != Some(0));
        let quorum = self.count(raw.quorum, "quorum", least);
        if let (Some(most), Some(span)) = (quorum_max, &most)
            && quorum > most
        {
            let message = format!("`quorum_max` {most} is below `quorum` {quorum}");
            self.error(span, message, "");
        }
        if let (0, None, Some(span)) = (quorum, quorum_max, &has_quorum) {
            self.error(
                span,
                "`quorum = 0` is always met",
                "with `quorum_max = 0` it is up while no such process runs",
            );
        }
        let delay = self.duration(raw.delay, "delay", Duration::ZERO..=DAY, Duration::ZERO);
        let mut or_delay = |raw, key| self.duration(raw, key, Duration::ZERO..=DAY, delay);
        let fork_delay = or_delay(raw.fork_delay, "fork_delay");
        let terminate_delay = or_delay(raw.terminate_delay, "terminate_delay");
        let needs_restart = [
            raw.restart_user.as_ref().map(|at| &at.span),
            raw.restart_interval.as_ref().map(|at| &at.span),
            raw.restart_tries.as_ref().map(|at| &at.span),
            raw.restart_timeout.as_ref().map(|at| &at.span),
        ];
        if let (None, Some(span)) = (&raw.restart, needs_restart.into_iter().flatten().next()) {
            self.error(
                span,
                "nothing is restarted without `restart`",
                "the command that starts the process, such as \"/usr/bin/systemctl restart nginx\"",
            );
        }
        let second = Duration::from_secs(1);
        let tries = self.small(raw.restart_tries, "restart_tries", 1..=255, 3);
        let interval = self.duration(
            raw.restart_interval,
            "restart_interval",
            second..=DAY,
            5 * second,
        );
        let timeout = self.duration(
            raw.restart_timeout,
            "restart_timeout",
            Duration::from_millis(100)..=DAY,
            30 * second,
        );
        TrackProcess {
            name,
            pattern,
            quorum,
            quorum_max,
            interval: self.duration(
                raw.interval,
                "interval",
                Duration::from_millis(100)..=DAY,
                second,
            ),
            fork_delay,
            terminate_delay,
            restart: raw.restart.map(|command| Restart {
                command: command.value,
                user: raw.restart_user.map(|at| at.value),
                interval,
                tries: tries.into(),
                timeout,
            }),
        }
    }

    fn pattern(&mut self, raw: &RawTrackProcess) -> ProcessPattern {
        let words = raw.process.as_ref().map_or(&[][..], |at| &at.value);
        let rest = self.choice(
            raw.param_match.clone(),
            "param_match",
            Rest::Nothing,
            &[("partial", Rest::Words), ("initial", Rest::Letters)],
        );
        let by_line = raw.command_line.as_ref().map(|at| at.value);
        if let (Some(at), Some(false)) = (&raw.param_match, by_line) {
            self.error(&at.span, "`param_match` without `command_line`", "");
        }
        if by_line.unwrap_or(raw.param_match.is_some()) {
            return ProcessPattern::CommandLine {
                words: words.to_vec(),
                rest,
            };
        }
        if let (Some(at), [_, _, ..]) = (&raw.process, words) {
            self.error(&at.span, "more than a name in `process`", NAME_OR_WORDS);
        }
        let name = words.first().cloned().unwrap_or_default();
        if let Some(at) = &raw.process
            && (name.is_empty() || name.contains('/'))
        {
            self.error(
                &at.span,
                format!("`{name}` cannot be a name of a program"),
                NAME_OR_WORDS,
            );
        }
        ProcessPattern::Name(name)
    }

    fn count(&mut self, raw: Option<At<i64>>, key: &str, default: u32) -> u32 {
        let number = self.number(raw, key, 0..=65_535, default.into(), |_, _| {});
        u32::try_from(number).unwrap_or(default)
    }

    pub(super) fn track_files(&mut self, raw: Vec<At<RawTrackFile>>) -> Vec<TrackFile> {
        self.at_most(&raw, MAX_FILES, "track files");
        let mut names = HashSet::new();
        let mut all = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let name = self.unique(raw.name, &mut names, "track file", &span);
            if let (None, Some(at)) = (&raw.init_file, &raw.init_overwrite) {
                self.error(
                    &at.span,
                    "`init_overwrite` without `init_file`",
                    "`init_file` is the number to be written",
                );
            }
            let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
            let value = raw
                .init_file
                .map(|at| self.number(Some(at), "init_file", range, 0, |_, _| {}));
            all.push(TrackFile {
                name,
                path: match raw.file {
                    Some(at) => self.path(Some(at), "file", ""),
                    None => PathBuf::new(),
                },
                weight: self.weight(raw.weight, MAX_FILE_WEIGHT, 1),
                init: value.map(|value| InitialValue {
                    value: i32::try_from(value).unwrap_or_default(),
                    overwrite: raw.init_overwrite.is_some_and(|at| at.value),
                }),
            });
        }
        all
    }

    fn at_most<T>(&mut self, raw: &[At<T>], most: usize, what: &str) {
        if let Some(surplus) = raw.get(most) {
            self.error(&surplus.span, format!("more than {most} {what}"), "");
        }
    }

    fn unique(
        &mut self,
        raw: Option<At<String>>,
        names: &mut HashSet<String>,
        what: &str,
        span: &std::ops::Range<usize>,
    ) -> String {
        let name = raw.map(|at| at.value).unwrap_or_default();
        if !name.is_empty() && !names.insert(name.clone()) {
            self.error(span, format!("duplicate {what} `{name}`"), "");
        }
        name
    }

    fn weight(&mut self, raw: Option<At<i64>>, most: i64, default: i16) -> i16 {
        let weight = self.number(raw, "weight", -most..=most, default.into(), |_, _| {});
        i16::try_from(weight).unwrap_or_default()
    }

    pub(super) fn watches(&mut self, raw: Vec<At<RawTrack>>, known: &Known<'_>) -> Vec<Watch> {
        let mut all: Vec<Watch> = Vec::with_capacity(raw.len());
        for At { value: raw, span } in raw {
            let things = [
                &raw.script,
                &raw.interface,
                &raw.process,
                &raw.file,
                &raw.route,
                &raw.service,
            ];
            if things.into_iter().flatten().count() != 1 {
                self.error(
                    &span,
                    "[[vrrp.track]] names one thing",
                    "a `script`, an `interface`, a `process`, a `file`, a `route` or a `service`",
                );
                continue;
            }
            self.belongs(&raw);
            let (mut most, mut default) = (MAX_WEIGHT, 0);
            if let Some(at) = &raw.file {
                most = MAX_FILE_WEIGHT;
                let file = known.files.iter().find(|f| f.name == at.value);
                default = file.map_or(1, |file| file.weight);
            }
            let weight = self.weight(raw.weight.clone(), most, default);
            let Some(what) = self.tracked(raw, known) else {
                continue;
            };
            if all.iter().any(|watch| watch.what == what) {
                self.error(&span, format!("{what} is watched twice"), "");
            }
            all.push(Watch { what, weight });
        }
        all
    }

    /// Keys that belong to one kind of thing only.
    fn belongs(&mut self, raw: &RawTrack) {
        let route = [
            ("via", raw.via.as_ref().map(|at| &at.span)),
            ("dev", raw.dev.as_ref().map(|at| &at.span)),
            ("table", raw.table.as_ref().map(|at| &at.span)),
        ];
        for (key, span) in route {
            if let (None, Some(span)) = (&raw.route, span) {
                self.error(span, format!("`{key}` belongs to a `route`"), "");
            }
        }
        if let (None, Some(at)) = (&raw.service, &raw.quorum) {
            self.error(
                &at.span,
                "`quorum` belongs to a `service`",
                "that of processes stands in [[track_process]]",
            );
        }
    }

    fn tracked(&mut self, raw: RawTrack, known: &Known<'_>) -> Option<Tracked> {
        if let Some(at) = raw.script {
            let names = known.scripts.iter().map(|s| s.name.as_str());
            self.must_be_known(&at, "track_script", names);
            return Some(Tracked::Script(at.value));
        }
        if let Some(at) = raw.interface {
            self.interface_name(&at);
            return Some(Tracked::Interface(at.value));
        }
        if let Some(at) = raw.process {
            let names = known.processes.iter().map(|p| p.name.as_str());
            self.must_be_known(&at, "track_process", names);
            return Some(Tracked::Process(at.value));
        }
        if let Some(at) = raw.file {
            let names = known.files.iter().map(|f| f.name.as_str());
            self.must_be_known(&at, "track_file", names);
            return Some(Tracked::File(at.value));
        }
        if let Some(at) = raw.route {
            let prefix = self.destination(&at)?;
            if let Some(dev) = &raw.dev {
                self.interface_name(dev);
            }
            let table = self.number(
                raw.table,
                "table",
                1..=i64::from(u32::MAX),
                TrackRoute::MAIN.into(),
                |_, _| {},
            );
            return Some(Tracked::Route(TrackRoute {
                prefix,
                via: raw.via.map(|at| self.ip(&at, "via")),
                dev: raw.dev.map(|at| at.value),
                table: u32::try_from(table).unwrap_or(TrackRoute::MAIN),
            }));
        }
        let at = raw.service?;
        let service = self.service_called(&at, known.services)?;
        let backends = service.backends.len();
        let place = raw.quorum.as_ref().map(|at| at.span.clone());
        let quorum = self.number(raw.quorum, "quorum", 1..=65_535, 1, |_, _| {});
        let quorum = u32::try_from(quorum).unwrap_or(1);
        if let Some(place) = place
            && quorum as usize > backends
        {
            let message = format!("`quorum` {quorum} is never met");
            let help = format!("{} has {backends} real servers", service.id);
            self.error(&place, message, &help);
        }
        Some(Tracked::Service(service.id, quorum))
    }

    fn must_be_known<'c>(
        &mut self,
        at: &At<String>,
        table: &str,
        names: impl Iterator<Item = &'c str>,
    ) {
        let names: Vec<&str> = names.collect();
        if names.contains(&at.value.as_str()) {
            return;
        }
        let message = format!("there is no [[{table}]] `{}`", at.value);
        let help = match names.as_slice() {
            [] => String::new(),
            names => format!("there is: {}", names.join(", ")),
        };
        self.error(&at.span, message, &help);
    }

    /// The destination of a route: a network without host bits.
    fn destination(&mut self, at: &At<String>) -> Option<IpPrefix> {
        let parsed = at.value.split_once('/').and_then(|(address, length)| {
            let address: IpAddr = address.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            let has_host_bits = match address {
                IpAddr::V4(v4) if length <= 32 => {
                    v4.to_bits().checked_shl(length.into()).unwrap_or(0) != 0
                }
                IpAddr::V6(v6) if length <= 128 => {
                    v6.to_bits().checked_shl(length.into()).unwrap_or(0) != 0
                }
                _ => return None,
            };
            (!has_host_bits).then_some(IpPrefix { address, length })
        });
        if parsed.is_none() {
            self.error(
                &at.span,
                format!("`{}` is not the destination of a route", at.value),
                "a network without host bits, such as \"0.0.0.0/0\" or \"2001:db8::/32\"",
            );
        }
        parsed
    }

    fn service_called<'c>(
        &mut self,
        at: &At<String>,
        services: &'c [VirtualService],
    ) -> Option<&'c VirtualService> {
        let mut called = services.iter().filter(|s| s.id.is_called(&at.value));
        let (found, second) = (called.next(), called.next());
        let Some(service) = found else {
            let names: Vec<String> = services.iter().map(|s| s.id.to_string()).collect();
            let help = match names.as_slice() {
                [] => String::new(),
                names => format!("there is: {}", names.join(", ")),
            };
            self.error(
                &at.span,
                format!("there is no service `{}`", at.value),
                &help,
            );
            return None;
        };
        if let Some(second) = second {
            let help = format!("\"{}\" or \"{}\"", service.id, second.id);
            self.error(&at.span, "more than one service is called so", &help);
        }
        if service
            .backends
            .iter()
            .all(|backend| backend.checks.is_empty())
        {
            self.error(
                &at.span,
                format!("{} has no check: it would always be up", service.id),
                "give it a [service.check], or do not watch it",
            );
        }
        Some(service)
    }

    pub(super) fn link_damping(&mut self, raw: RawLinkDamping) -> LinkDamping {
        let default = LinkDamping::default();
        let needs_flaps = [
            raw.window.as_ref().map(|at| &at.span),
            raw.hold.as_ref().map(|at| &at.span),
            raw.hold_max.as_ref().map(|at| &at.span),
        ];
        if let (None, Some(span)) = (&raw.flaps, needs_flaps.into_iter().flatten().next()) {
            self.error(
                span,
                "losses of the link are not counted without `link_flaps`",
                "`link_flaps` is how many are borne",
            );
        }
        let place = raw.hold_max.as_ref().map(|at| at.span.clone());
        let some = Duration::from_millis(100)..=DAY;
        let hold = self.duration(raw.hold, "link_hold", some.clone(), default.hold);
        let most = default.hold_max.max(hold);
        let hold_max = self.duration(raw.hold_max, "link_hold_max", some.clone(), most);
        if let Some(place) = place
            && hold_max < hold
        {
            self.error(&place, "`link_hold_max` is below `link_hold`", "");
        }
        LinkDamping {
            up_delay: self.duration(
                raw.up_delay,
                "link_up_delay",
                Duration::ZERO..=DAY,
                default.up_delay,
            ),
            flaps: self.small(raw.flaps, "link_flaps", 0..=255, 0).into(),
            window: self.duration(raw.window, "link_flap_window", some, default.window),
            hold,
            hold_max,
        }
    }
}
