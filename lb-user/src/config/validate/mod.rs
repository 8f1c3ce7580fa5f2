//! From the file as written to a configuration that is always valid. Goes on after an error, so
//! that one run names them all; what a faulty part yields is never used, because any diagnostic
//! discards the result.

mod announce;
mod auth;
mod check;
mod network;
mod notify;
mod plane;
mod pool;
mod service;
mod sorry;
mod track;
mod traffic;
mod values;
mod vrrp;

use std::{collections::HashSet, net::SocketAddr, ops::Range, path::PathBuf, time::Duration};

use lb_common::limits;

use self::{network::Claims, notify::MailWishes, values::DAY};
use super::{
    diagnostic::Diagnostic,
    raw::{Raw, RawDataplane, RawMetrics, RawProtection, RawRuntime},
    reader::At,
};
use crate::model::{Config, DataplaneConfig, FlowTimeouts, Instance, Mode, Runtime};

/// Adds to `errors` whatever is wrong.
pub fn validate(mut raw: Raw, host_name: &str, errors: &mut Vec<Diagnostic>) -> Config {
    let mut check = Validator {
        errors,
        mode: Mode::default(),
        claims: Claims::default(),
    };
    check.mode = check.data_plane_mode(raw.dataplane.as_ref());
    if let Some(protection) = &raw.protection {
        check.only_in_xdp(&protection.span, "[protection]");
    }
    let statics = check.statics(&mut raw);
    let wishes = MailWishes::of(&raw);
    let track_scripts = check.track_scripts(raw.track_scripts);
    let track_processes = check.track_processes(raw.track_processes);
    let track_files = check.track_files(raw.track_files);
    let (mut instances, tracks) = check.instances(raw.instances);
    let nowhere = raw.dataplane.is_none()
        || raw
            .dataplane
            .as_ref()
            .is_some_and(|d| d.value.interfaces.is_none());
    if let Some(service) = raw.services.first()
        && instances.is_empty()
        && nowhere
    {
        let help = "name those that receive its traffic: [dataplane] interfaces = [\"...\"]";
        check.error(&service.span, "a service, but no interface", help);
    }
    let services = check.services(raw.services, &instances);
    let known = track::Known {
        scripts: &track_scripts,
        processes: &track_processes,
        files: &track_files,
        services: &services,
    };
    for (instance, tracks) in instances.iter_mut().zip(tracks) {
        instance.watches = check.watches(tracks, &known);
    }
    let sync_daemon = raw.sync_daemon.map(|at| check.sync_daemon(at, &instances));
    let (sync_groups, group_wishes) =
        check.sync_groups(std::mem::take(&mut raw.sync_groups), &instances);
    let mail = check.mail(
        raw.mail,
        host_name,
        wishes,
        (&sync_groups, group_wishes),
        &services,
    );
    Config {
        router_id: raw
            .router_id
            .map_or_else(|| host_name.to_owned(), |at| at.value),
        metrics: check.metrics(raw.metrics.map(|at| at.value).unwrap_or_default()),
        runtime: check.runtime(raw.runtime.map(|at| at.value).unwrap_or_default()),
        dataplane: check.dataplane(
            raw.dataplane.map(|at| at.value).unwrap_or_default(),
            raw.protection.map(|at| at.value).unwrap_or_default(),
            &instances,
        ),
        sync_daemon,
        statics,
        track_scripts,
        track_processes,
        track_files,
        instances,
        sync_groups,
        mail,
        services,
    }
}

/// Slots beyond which no table grows unless configured: two million flows, 64 MiB.
const DEFAULT_MAX_FLOW_SLOTS: u32 = 1 << 22;

struct Validator<'e> {
    errors: &'e mut Vec<Diagnostic>,
    /// Which data plane is wanted: what is possible depends on it.
    mode: Mode,
    claims: Claims,
}

impl Validator<'_> {
    fn error(&mut self, span: &Range<usize>, message: impl Into<String>, help: &str) {
        self.errors.push(Diagnostic {
            span: span.clone(),
            message: message.into(),
            help: (!help.is_empty()).then(|| help.to_owned()),
        });
    }

    fn runtime(&mut self, mut raw: RawRuntime) -> Runtime {
        Runtime {
            notify_fifo: self.fifo(&mut raw),
            socket: self.path(raw.socket, "socket", "/run/lbd/lbd.sock"),
            pin_path: self.path(raw.pin_path, "pin_path", "/sys/fs/bpf/lbd"),
            script_user: raw
                .script_user
                .map_or_else(|| "nobody".to_owned(), |at| at.value),
        }
    }

    fn metrics(&mut self, raw: RawMetrics) -> Option<SocketAddr> {
        let at = raw.listen?;
        match at.value.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) | Err(_) => {
                self.error(
                    &at.span,
                    format!("`listen` cannot be \"{}\"", at.value),
                    "an address of this host with a port, such as \"127.0.0.1:9112\" or \"[::1]:9112\"",
                );
                None
            }
        }
    }

    fn path(&mut self, raw: Option<At<String>>, key: &str, default: &str) -> PathBuf {
        let Some(at) = raw else {
            return PathBuf::from(default);
        };
        if !at.value.starts_with('/') {
            self.error(&at.span, format!("`{key}` must be an absolute path"), "");
        }
        PathBuf::from(at.value)
    }

    fn dataplane(
        &mut self,
        raw: RawDataplane,
        protection: RawProtection,
        instances: &[Instance],
    ) -> DataplaneConfig {
        let interfaces = match raw.interfaces {
            Some(list) => {
                if list.value.is_empty() {
                    self.error(
                        &list.span,
                        "`interfaces` is empty",
                        "leave it out to use those of the VRRP instances",
                    );
                }
                let mut seen = HashSet::new();
                for name in &list.value {
                    self.interface_name(name);
                    if !seen.insert(name.value.clone()) {
                        self.error(
                            &name.span,
                            format!("interface {} is listed twice", name.value),
                            "",
                        );
                    }
                }
                list.value.into_iter().map(|name| name.value).collect()
            }
            None => {
                let mut names: Vec<String> =
                    instances.iter().map(|i| i.interface.clone()).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        let given = raw.max_flow_slots.is_some();
        let place = raw.max_flow_slots.as_ref().map(|at| at.span.clone());
        let flow_slots = self.slots(raw.flow_slots, "flow_slots", limits::DEFAULT_FLOW_SLOTS);
        let default = DEFAULT_MAX_FLOW_SLOTS.max(flow_slots);
        let max_flow_slots = self.slots(raw.max_flow_slots, "max_flow_slots", default);
        if given && max_flow_slots < flow_slots {
            let message =
                format!("`max_flow_slots` {max_flow_slots} is below `flow_slots` {flow_slots}");
            self.error(&place.unwrap_or_default(), message, "");
        }
        let protection = self.protection(protection);
        let mode = self.mode;
        let mut timeout = |raw, key, seconds| {
            self.duration(
                raw,
                key,
                Duration::from_secs(1)..=DAY,
                Duration::from_secs(seconds),
            )
        };
        DataplaneConfig {
            mode,
            timeouts: FlowTimeouts {
                tcp: timeout(raw.tcp_timeout, "tcp_timeout", 900),
                tcp_closing: timeout(raw.tcp_closing_timeout, "tcp_closing_timeout", 120),
                tcp_half_open: timeout(raw.tcp_half_open_timeout, "tcp_half_open_timeout", 60),
                udp: timeout(raw.udp_timeout, "udp_timeout", 300),
            },
            interfaces,
            allow_generic: raw.allow_generic.is_some_and(|at| at.value),
            flow_slots,
            max_flow_slots,
            protection,
        }
    }

    /// A number of flow slots.
    fn slots(&mut self, raw: Option<At<i64>>, key: &str, default: u32) -> u32 {
        let range = i64::from(limits::CHUNK_SLOTS)..=i64::from(limits::MAX_FLOW_SLOTS);
        let slots = self.number(raw, key, range, i64::from(default), |v, n| {
            if n.count_ones() != 1 {
                v.error_here(
                    &format!("{key} must be a power of two"),
                    "such as 262144; half of it is the number of flows it serves well",
                );
            }
        });
        u32::try_from(slots).unwrap_or(default)
    }
}
