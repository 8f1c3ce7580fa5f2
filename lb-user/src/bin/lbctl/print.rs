//! The API's documents as text for people. Pure but for the present time.

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::notify;
use lb_user::api::proto::{
    BackendSnapshot, FlowPage, InstanceStatus, MapDump, Reload, ServiceSnapshot, Status, Steered,
    TableInfo, Why,
};

use crate::{data_plane, health, pools, tracking};

/// `lbctl status`.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format!(
            "lbd {} on {}, pid {}, up {}, {}",
            status.version,
            status.router_id,
            status.pid,
            span(status.uptime_s),
            status.config
        ),
    );
    for steered in &status.steered {
        line(&mut out, format!("steered     {steered}"));
    }
    if status.problems.is_empty() {
        line(&mut out, "no problems");
    }
    for problem in &status.problems {
        line(&mut out, format!("PROBLEM  {problem}"));
    }
    line(&mut out, "");
    let plane = &status.data_plane;
    let interfaces: Vec<String> = plane
        .interfaces
        .iter()
        .map(|a| format!("{} ({})", a.interface, a.mode))
        .collect();
    line(
        &mut out,
        match interfaces.is_empty() {
            true => format!("data plane  {}; {}", plane.kind, plane.choice),
            false => format!(
                "data plane  {} on {}; {}",
                plane.kind,
                interfaces.join(", "),
                plane.choice
            ),
        },
    );
    for text in data_plane::lines(plane) {
        line(&mut out, text);
    }
    if let Some(sync) = &plane.sync {
        line(&mut out, format!("sync        the kernel {sync}"));
    }
    if let Some(last) = &plane.repairs.last {
        let (count, at) = (plane.repairs.count, since(plane.repairs.at));
        line(
            &mut out,
            format!("repaired    {count} changes by others, the last one {at}: {last}"),
        );
    }
    line(
        &mut out,
        format!(
            "generation  {} since {}: {}",
            status.generation.number,
            since(status.generation.at),
            status.generation.reason
        ),
    );
    let passed: Vec<String> = plane
        .passed
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    line(
        &mut out,
        format!("counted     not forwarded: {} packets", passed.join(", ")),
    );
    for instance in &status.instances {
        line(
            &mut out,
            format!(
                "{:<10}  {} since {}: {}; {} on {}; data plane {}, generation {}",
                instance.name,
                instance.state,
                since(instance.since),
                instance.reason,
                instance.addresses.join(" "),
                instance.interface,
                if instance.state.to_string() == "MASTER" {
                    "serving"
                } else {
                    "passing"
                },
                instance.generation
            ),
        );
    }
    out.push_str(&notify::status(status));
    for service in &plane.services {
        let alive = service
            .backends
            .iter()
            .filter(|b| !b.sorry && !["down", "inhibited", "resetting"].contains(&&*b.state))
            .count();
        let all = service.backends.iter().filter(|b| !b.sorry).count();
        line(
            &mut out,
            format!(
                "{} {} {}  {}, {alive} of {all} real servers up",
                service.protocol,
                service.address,
                service.scheduler,
                match (service.serving, service.always) {
                    (_, true) => "serving always (no VRRP instance has this address)",
                    (true, false) => "serving",
                    (false, false) => "not serving (not MASTER)",
                }
            ),
        );
        if !service.reasons.is_empty() {
            let reasons: Vec<String> = service
                .reasons
                .iter()
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            line(
                &mut out,
                format!("  not forwarded: {} packets", reasons.join(", ")),
            );
        }
        let name = format!("{} {}", service.protocol, service.address);
        for text in pools::of(status, &name)
            .map(pools::lines)
            .unwrap_or_default()
        {
            line(&mut out, format!("  {text}"));
        }
        for backend in &service.backends {
            line(&mut out, backend_line(status, service, backend));
            let mut checks = status.checks.iter();
            let check = checks.find(|c| c.service == name && c.backend == backend.address);
            for text in check.map(health::failing).unwrap_or_default() {
                line(&mut out, format!("    {text}"));
            }
        }
    }
    out
}

fn backend_line(status: &Status, service: &ServiceSnapshot, backend: &BackendSnapshot) -> String {
    let name = format!("{} {}", service.protocol, service.address);
    let check = status
        .checks
        .iter()
        .find(|c| c.service == name && c.backend == backend.address && c.sorry == backend.sorry);
    let mut text = format!("  {:<15} weight {:<5} ", backend.address, backend.weight);
    if backend.sorry {
        let role = if backend.state == "up" {
            "sorry server, answering"
        } else {
            "sorry server"
        };
        text.push_str(role);
        if let Some(check) = check.filter(|check| !check.up) {
            let cause = check.cause.as_deref().unwrap_or_default();
            let _ = write!(text, "; down for {}: {cause}", ago(check.since));
        }
        return text;
    }
    text.push_str(&backend.state);
    if let Some(pool) = pools::of(status, &name) {
        text.push_str(&pools::of_backend(pool, &backend.address));
    }
    if backend.state == "draining" {
        let advised = check.and_then(|check| check.advised_weight);
        let why = if backend.weight == 0 && advised == Some(0) {
            " (by its checks)"
        } else if backend.weight == 0 {
            " (weight 0)"
        } else {
            " (by an operator)"
        };
        text.push_str(why);
    } else if let Some(check) = check {
        let _ = write!(text, " for {}", ago(check.since));
        if let Some(cause) = &check.cause {
            let _ = write!(text, ": {cause}");
        }
    } else {
        text.push_str(" (not checked)");
    }
    if status.data_plane.kind == "xdp" && backend.mac.is_none() && backend.address != "local" {
        text.push_str("; MAC address unknown");
    }
    text
}

/// `lbctl vrrp`.
pub fn vrrp(instances: &[InstanceStatus]) -> String {
    let mut out = String::new();
    for instance in instances {
        line(
            &mut out,
            format!(
                "{}  {} since {}: {}",
                instance.name,
                instance.state,
                since(instance.since),
                instance.reason
            ),
        );
        line(
            &mut out,
            format!(
                "  VRID {} on {}, version {}, priority {}, adverts every {} from {}",
                instance.virtual_router_id,
                instance.interface,
                instance.version,
                match instance.manual {
                    true => format!(
                        "{} from an operator ({} configured)",
                        instance.priority, instance.configured_priority
                    ),
                    false => instance.priority.to_string(),
                },
                precise(instance.advert_interval_ms),
                instance
                    .source
                    .as_deref()
                    .unwrap_or("nowhere: the interface has no address")
            ),
        );
        line(
            &mut out,
            format!("  addresses {}", instance.addresses.join(" ")),
        );
        if !instance.excluded_addresses.is_empty() {
            let list = instance.excluded_addresses.join(" ");
            line(&mut out, format!("  not in the adverts: {list}"));
        }
        if let Some(mac) = &instance.virtual_mac {
            line(&mut out, format!("  virtual MAC address {mac}"));
        }
        if !instance.accept {
            line(&mut out, "  this host takes no packets to them");
        }
        for item in &instance.placed {
            line(&mut out, format!("  {item}"));
        }
        if !instance.unicast_peers.is_empty() {
            let list = instance.unicast_peers.join(" ");
            line(&mut out, format!("  speaks to {list} alone"));
        }
        if let Some(wait) = &instance.link_wait {
            line(&mut out, format!("  {}", tracking::link_wait(wait)));
        }
        out.push_str(&notify::scripts(&instance.scripts));
        for watched in &instance.watched {
            line(&mut out, format!("  {}", tracking::watched(watched)));
        }
        if let Some(timer) = instance.timer_ms {
            let what = if instance.state.to_string() == "MASTER" {
                "next advert"
            } else {
                "master is down"
            };
            line(&mut out, format!("  {what} in {}", precise(timer)));
        }
        match &instance.peer {
            Some(peer) => line(
                &mut out,
                format!(
                    "  peer {} with priority {}, heard {} ago",
                    peer.address,
                    peer.priority,
                    precise(peer.heard_ms_ago)
                ),
            ),
            None => line(&mut out, "  no peer heard yet"),
        }
        line(
            &mut out,
            format!(
                "  adverts: {} sent, {} received, {} not sent; at worst {:.1} ms late",
                instance.sent,
                instance.received,
                instance.send_errors,
                instance.worst_lateness_us as f64 / 1e3
            ),
        );
        line(
            &mut out,
            format!(
                "  gratuitous ARP and neighbour advertisements: {} sent",
                instance.announcements
            ),
        );
        let entered: Vec<String> = instance
            .entered
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(state, count)| format!("{state} {count}"))
            .collect();
        line(
            &mut out,
            format!(
                "  states entered: {}; authentication: {}",
                entered.join(", "),
                instance.authentication
            ),
        );
        for (reason, count) in &instance.rejected {
            line(&mut out, format!("  ignored {count} adverts: {reason}"));
        }
        for disagreement in &instance.disagreements {
            let peer = disagreement.peer.as_deref().unwrap_or("somebody");
            let (count, advice) = (disagreement.count, &disagreement.advice);
            line(&mut out, format!("  {peer} {advice} ({count} times)"));
        }
    }
    out
}

/// What an order did, a line each.
pub fn steered(done: &Steered) -> String {
    done.changes
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// `lbctl map list`.
pub fn maps(maps: &[TableInfo]) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format!(
            "{:<14} {:>6}  {:<22} {:>4} {:>6} {:>9}",
            "NAME", "ID", "TYPE", "KEY", "VALUE", "CAPACITY"
        ),
    );
    for map in maps {
        line(
            &mut out,
            format!(
                "{:<14} {:>6}  {:<22} {:>4} {:>6} {:>9}",
                map.name, map.id, map.kind, map.key_size, map.value_size, map.max_entries
            ),
        );
    }
    out
}

/// `lbctl map dump`: one line an entry, `key=value` pairs.
pub fn dumps(dumps: &[MapDump]) -> String {
    let mut out = String::new();
    for dump in dumps {
        let count = dump.entries.len();
        line(
            &mut out,
            format!(
                "{}: {count} {}",
                dump.name,
                if count == 1 { "entry" } else { "entries" }
            ),
        );
        for entry in &dump.entries {
            let pairs: Vec<String> = entry
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| {
                    format!(
                        "{key}={}",
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned)
                    )
                })
                .collect();
            line(&mut out, format!("  {}", pairs.join(" ")));
        }
    }
    out
}

/// `lbctl reload`.
pub fn reload(reload: &Reload, dry_run: bool) -> String {
    let mut out = String::new();
    let verb = if dry_run { "would change" } else { "changed" };
    if reload.changes.is_empty() {
        line(&mut out, format!("nothing {verb}"));
    }
    for change in &reload.changes {
        line(&mut out, format!("{verb}: {change}"));
    }
    for section in &reload.needs_restart {
        line(&mut out, format!("waits for a restart of lbd: [{section}]"));
    }
    out
}

pub fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref());
    out.push('\n');
}

/// A point in time, with how long ago it is.
pub fn since(unix: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix);
    format!(
        "{} ({})",
        humantime::format_rfc3339_seconds(time),
        ago(unix)
    )
}

pub(crate) fn ago(unix: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    span(now.saturating_sub(unix))
}

fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

pub(crate) fn precise(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1_000, milliseconds % 1_000)
}

/// Flows, one a line.
pub fn flows(page: &FlowPage) -> String {
    let mut out = format!(
        "{:<28} {:<28} {:<22} {:<12} {:>8}\n",
        "Client", "Service", "Real server", "State", "Expires"
    );
    for flow in &page.flows {
        let service = match flow.port {
            Some(port) => format!("{} port {port}", flow.service),
            None => flow.service.clone(),
        };
        line(
            &mut out,
            format!(
                "{:<28} {service:<28} {:<22} {:<12} {:>6} s",
                flow.client, flow.backend, flow.state, flow.expires_in_s
            ),
        );
    }
    let last = page.offset + page.flows.len();
    let shown = if page.flows.is_empty() {
        "none".to_owned()
    } else {
        format!("{} to {last}", page.offset + 1)
    };
    let more = if last < page.total {
        format!("; more with --offset {last}")
    } else {
        String::new()
    };
    line(&mut out, format!("{shown} of {} flows{more}", page.total));
    out
}

/// The steps, and the answer.
pub fn why(why: &Why) -> String {
    let mut out = String::new();
    for step in &why.steps {
        line(&mut out, format!("- {step}"));
    }
    let answer = match &why.backend {
        Some(backend) => format!("{backend}, because: {}", why.because),
        None => format!("no real server, because: {}", why.because),
    };
    line(&mut out, answer);
    out
}
