//! What a reload changes, in words for the log.

use crate::model::{Config, Instance, RealServer};

/// One line per difference between the running and the new configuration.
pub fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    if old.router_id != new.router_id {
        lines.push(format!("router_id {} -> {}", old.router_id, new.router_id));
    }
    if old.dataplane.timeouts != new.dataplane.timeouts {
        lines.push("flow time-outs changed".to_owned());
    }
    if old.dataplane.protection.source_rate != new.dataplane.protection.source_rate {
        lines.push("limit of new connections of one source changed".to_owned());
    }
    let sources = |config: &Config| config.dataplane.protection.sources.len();
    if old.dataplane.protection.sources != new.dataplane.protection.sources {
        let (before, after) = (sources(old), sources(new));
        lines.push(format!("listed sources changed ({before} -> {after})"));
    }
    if old.sync_daemon != new.sync_daemon {
        lines.push("lvs_sync_daemon changed".to_owned());
    }
    if old.statics != new.statics {
        lines.push("static addresses, routes and rules changed".to_owned());
    }
    for instance in &new.instances {
        match old.instances.iter().find(|i| i.name == instance.name) {
            None => match old.instances.iter().find(|i| i.goes_on_as(instance)) {
                Some(before) => lines.push(format!(
                    "VRRP instance {} goes on as {}",
                    before.name, instance.name
                )),
                None => lines.push(format!("VRRP instance {} added", instance.name)),
            },
            Some(before) if before.priority != instance.priority => lines.push(format!(
                "VRRP instance {} changed, priority {} -> {}",
                instance.name, before.priority, instance.priority
            )),
            Some(before) if before != instance => {
                lines.push(format!("VRRP instance {} changed", instance.name));
            }
            Some(_) => {}
        }
    }
    for instance in &old.instances {
        let goes_on = |now: &Instance| now.name == instance.name || instance.goes_on_as(now);
        if !new.instances.iter().any(goes_on) {
            lines.push(format!("VRRP instance {} removed", instance.name));
        }
    }
    let (a, b) = (&old.track_scripts, &new.track_scripts);
    named("track script", a, b, |script| &script.name, &mut lines);
    let (a, b) = (&old.track_processes, &new.track_processes);
    named("track process", a, b, |process| &process.name, &mut lines);
    let (a, b) = (&old.track_files, &new.track_files);
    named("track file", a, b, |file| &file.name, &mut lines);
    let (a, b) = (&old.sync_groups, &new.sync_groups);
    named("sync group", a, b, |group| &group.name, &mut lines);
    if old.mail != new.mail {
        lines.push("mail changed".to_owned());
    }
    for service in &new.services {
        let Some(before) = old.services.iter().find(|s| s.id == service.id) else {
            lines.push(format!("service {} added", service.id));
            continue;
        };
        for backend in &service.backends {
            match before
                .backends
                .iter()
                .find(|b| b.address == backend.address)
            {
                None => lines.push(format!(
                    "{}: real server {} added",
                    service.id, backend.address
                )),
                Some(b) if b.weight != backend.weight => lines.push(format!(
                    "{}: weight of {} {} -> {}",
                    service.id, backend.address, b.weight, backend.weight
                )),
                Some(b) if (b.upper, b.lower) != (backend.upper, backend.lower) => {
                    lines.push(format!(
                        "{}: thresholds of {} changed",
                        service.id, backend.address
                    ));
                }
                Some(b) if b.member != backend.member => {
                    lines.push(format!(
                        "{}: what happens when {} fails changed",
                        service.id, backend.address
                    ));
                }
                Some(_) => {}
            }
        }
        let other_checks = |backend: &RealServer| {
            let old = before
                .backends
                .iter()
                .find(|b| b.address == backend.address);
            old.is_some_and(|old| old.checks != backend.checks)
        };
        if service.backends.iter().any(other_checks) {
            lines.push(format!("{}: health checks changed", service.id));
        }
        for backend in &before.backends {
            if !service
                .backends
                .iter()
                .any(|b| b.address == backend.address)
            {
                lines.push(format!(
                    "{}: real server {} removed",
                    service.id, backend.address
                ));
            }
        }
        let settings = |s: &crate::model::VirtualService| {
            let mut settings = s.clone();
            settings.backends = Vec::new();
            settings
        };
        if settings(before) != settings(service) {
            lines.push(format!("{}: settings changed", service.id));
        }
    }
    for service in &old.services {
        if !new.services.iter().any(|s| s.id == service.id) {
            lines.push(format!("service {} removed", service.id));
        }
    }
    lines
}

/// Things of one kind that came, changed or went.
fn named<T: PartialEq>(
    kind: &str,
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &String,
    lines: &mut Vec<String>,
) {
    for thing in new {
        match old.iter().find(|before| name(before) == name(thing)) {
            None => lines.push(format!("{kind} {} added", name(thing))),
            Some(before) if before != thing => {
                lines.push(format!("{kind} {} changed", name(thing)));
            }
            Some(_) => {}
        }
    }
    for thing in old {
        if !new.iter().any(|after| name(after) == name(thing)) {
            lines.push(format!("{kind} {} removed", name(thing)));
        }
    }
}

/// The sections whose change a running daemon cannot take over.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut sections = Vec::new();
    if old.runtime != new.runtime {
        sections.push("runtime");
    }
    if old.metrics != new.metrics {
        sections.push("metrics");
    }
    if old.dataplane.mode != new.dataplane.mode
        || old.dataplane.interfaces != new.dataplane.interfaces
        || old.dataplane.allow_generic != new.dataplane.allow_generic
        || old.dataplane.flow_slots != new.dataplane.flow_slots
        || old.dataplane.max_flow_slots != new.dataplane.max_flow_slots
    {
        sections.push("dataplane");
    }
    sections
}
