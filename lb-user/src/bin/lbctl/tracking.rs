//! Watched things and links as text. Pure but for the present time.

use lb_user::api::proto::{LinkWait, Watched};

use super::print::{ago, precise};

/// One watched thing.
pub fn watched(watched: &Watched) -> String {
    let effect = match watched.effect {
        None => ", FAULT".to_owned(),
        Some(0) => String::new(),
        Some(effect) => format!(", priority {effect:+}"),
    };
    let detail = watched.detail.as_ref();
    let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
    format!(
        "{} (weight {}): {} for {}{effect}{detail}",
        watched.what,
        watched.weight,
        watched.state,
        ago(watched.since)
    )
}

/// Why a link is not used.
pub fn link_wait(wait: &LinkWait) -> String {
    let why = if wait.held {
        "the link was lost too often"
    } else {
        "the link has just come up"
    };
    let needed = precise(wait.needed_ms);
    match wait.left_ms {
        Some(left) => format!(
            "{why}: used once it was up for {needed}, in {}",
            precise(left)
        ),
        None => format!("{why}: used once it was up for {needed}; it is down"),
    }
}
