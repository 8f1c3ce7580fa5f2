//! Health checks as text.

use lb_user::{
    api::proto::{CheckStatus, ProbeStatus, Status},
    model::Spread,
};

use crate::print::{ago, line};

/// `lbctl health`.
pub fn health(status: &Status) -> String {
    let mut out = String::new();
    let mut service = "";
    for server in &status.checks {
        if server.service != service {
            service = &server.service;
            line(&mut out, service);
        }
        let role = if server.sorry { " (sorry server)" } else { "" };
        line(
            &mut out,
            format!(
                "  {}{role}  {}",
                server.backend,
                state(server.up, server.since)
            ),
        );
        for check in &server.checks {
            line(&mut out, format!("    {}", of(check)));
        }
    }
    if out.is_empty() {
        line(&mut out, "no health checks");
        return out;
    }
    for (what, spread) in [
        ("attempts began late", &status.probes.lateness),
        ("the data plane followed", &status.probes.reaction),
    ] {
        if spread.count > 0 {
            line(&mut out, format!("{what}: {}", times(spread)));
        }
    }
    out
}

/// The checks of a real server that fail, a line each, where it has others.
pub fn failing(server: &CheckStatus) -> Vec<String> {
    let failing = server.checks.iter().filter(|check| !check.up);
    match server.checks.len() {
        0 | 1 => Vec::new(),
        _ => failing.map(of).collect(),
    }
}

fn of(check: &ProbeStatus) -> String {
    let ProbeStatus {
        kind,
        target,
        attempts,
        failures,
        ..
    } = check;
    let mut text = format!(
        "{kind} {target}  {}, {attempts} attempts, {failures} failed",
        state(check.up, check.since)
    );
    let said = match (check.blind, &check.trouble, &check.cause) {
        (true, Some(trouble), _) => Some(("the last showed nothing", trouble)),
        // One that has failed, but not often enough, or that has passed, but not often enough.
        (false, Some(trouble), _) => Some(("the last failed", trouble)),
        (_, None, Some(cause)) => Some(("down because", cause)),
        (_, None, None) => None,
    };
    if let Some((what, why)) = said {
        text += &format!("; {what}: {why}");
    }
    text
}

fn state(up: bool, since: u64) -> String {
    let word = if up { "up" } else { "down" };
    format!("{word} for {}", ago(since))
}

fn times(spread: &Spread) -> String {
    let Spread {
        count,
        p50_ms,
        p99_ms,
        max_ms,
        ..
    } = spread;
    format!(
        "{count} times, within {p50_ms} ms (median), {p99_ms} ms (99 %), {max_ms:.1} ms (worst)"
    )
}
