//! Pools of real servers as text.

use lb_user::api::proto::{PoolStatus, Status};

use crate::print::{ago, since};

/// The pool of a service.
pub fn of<'a>(status: &'a Status, service: &str) -> Option<&'a PoolStatus> {
    status.pools.iter().find(|pool| pool.service == service)
}

/// What is not as usual with a pool, a line each.
pub fn lines(pool: &PoolStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let plain = pool.quorum == 1 && pool.hysteresis == 0;
    if !pool.has_quorum || !plain {
        let (state, needed) = match pool.has_quorum {
            true => ("quorum", pool.quorum.saturating_sub(pool.hysteresis).max(1)),
            false => ("no quorum", pool.quorum + pool.hysteresis),
        };
        let verb = if pool.has_quorum {
            "lost below"
        } else {
            "gained at"
        };
        let (live, since) = (pool.live_weight, since(pool.since));
        lines.push(format!(
            "{state} since {since}: live weight {live}, {verb} {needed}"
        ));
    }
    if let Some(since) = pool.panic_since {
        let (since, kept) = (ago(since), pool.kept.join(" "));
        lines.push(format!(
            "panic for {since}: too many failed at once; kept in use: {kept}"
        ));
    }
    if pool.checks_paused {
        lines.push("not checked while BACKUP (check_on_backup = false)".to_owned());
    }
    lines
}

/// What is special about one of its real servers, behind its state.
pub fn of_backend(pool: &PoolStatus, backend: &str) -> String {
    let mut text = String::new();
    if let Some(growing) = pool.growing.iter().find(|g| g.backend == backend) {
        text += &format!(", {} % of its weight so far", growing.percent);
    }
    if pool.kept.iter().any(|kept| kept == backend) {
        text += ", kept although its checks fail";
    }
    text
}
