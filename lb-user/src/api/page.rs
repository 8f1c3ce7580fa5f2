//! The status as a page for a browser: no scripts, nothing loaded, problems first. Pure.

use std::fmt::Write;

use super::proto::{EventPage, Status};

/// `GET`: the page.
pub const PATH: &str = "/";
/// The latest events shown.
const EVENTS: usize = 50;
const STYLE: &str = "body{font:16px/1.5 monospace;margin:1.5em;background:#111;color:#ddd}\
    h1{font-size:1.3em}h2{font-size:1.1em;margin:1.5em 0 .3em}\
    table{border-collapse:collapse}td,th{text-align:left;padding:.1em 1.2em .1em 0;vertical-align:top}\
    .bad{color:#f77;font-weight:bold}.good{color:#7d7}";

/// The page.
pub fn render(status: &Status, events: &EventPage) -> String {
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<meta http-equiv=\"refresh\" content=\"5\"><title>{} - lbd</title><style>{STYLE}</style></head><body>\
         <h1>lbd {} on {}, up {} s</h1>",
        escaped(&status.router_id),
        escaped(&status.version),
        escaped(&status.router_id),
        status.uptime_s
    );
    problems(&mut out, status);
    instances(&mut out, status);
    services(&mut out, status);
    latest(&mut out, events);
    out.push_str(
        "<p>Figures: <a href=\"/metrics\" style=\"color:inherit\">/metrics</a></p></body></html>\n",
    );
    out
}

fn problems(out: &mut String, status: &Status) {
    if status.problems.is_empty() {
        out.push_str("<p class=\"good\">no problems</p>\n");
        return;
    }
    out.push_str("<ul class=\"bad\">\n");
    for problem in &status.problems {
        let _ = writeln!(out, "<li>{}</li>", escaped(problem));
    }
    out.push_str("</ul>\n");
}

fn instances(out: &mut String, status: &Status) {
    out.push_str("<h2>VRRP</h2>\n");
    table(
        out,
        &[
            "Instance",
            "State",
            "Since",
            "Why",
            "Priority",
            "Interface",
            "Addresses",
            "Peer",
        ],
        status.instances.iter().map(|instance| {
            let peer = instance.peer.as_ref().map_or_else(String::new, |peer| {
                format!(
                    "{} ({}), {} ms ago",
                    peer.address, peer.priority, peer.heard_ms_ago
                )
            });
            vec![
                instance.name.clone(),
                instance.state.to_string(),
                time(instance.since.saturating_mul(1_000)),
                instance.reason.clone(),
                instance.priority.to_string(),
                instance.interface.clone(),
                instance.addresses.join(" "),
                peer,
            ]
        }),
    );
}

fn services(out: &mut String, status: &Status) {
    out.push_str("<h2>Services</h2>\n");
    let rows = status.data_plane.services.iter().flat_map(|service| {
        let name = format!("{} {}", service.protocol, service.address);
        let serving = if service.serving || service.always {
            "serving"
        } else {
            "not serving"
        };
        service.backends.iter().map(move |server| {
            let role = if server.sorry { "sorry server, " } else { "" };
            vec![
                name.clone(),
                serving.to_owned(),
                server.address.clone(),
                format!("{role}{}", server.state),
                server.weight.to_string(),
                server.active.to_string(),
                server.inactive.to_string(),
                server.connections.to_string(),
            ]
        })
    });
    let heads = [
        "Service",
        "",
        "Real server",
        "State",
        "Weight",
        "Active",
        "Inactive",
        "Connections",
    ];
    table(out, &heads, rows);
}

fn latest(out: &mut String, page: &EventPage) {
    out.push_str("<h2>Latest events</h2>\n");
    let rows = page.events.iter().rev().take(EVENTS).map(|event| {
        let times = match event.count {
            1 => String::new(),
            count => format!("{count} times"),
        };
        vec![
            time(event.at_ms),
            event.kind.label().to_owned(),
            event.subject.clone(),
            event.peer.clone().unwrap_or_default(),
            event.text.clone(),
            times,
        ]
    });
    table(out, &["Time", "Kind", "Subject", "Peer", "What", ""], rows);
}

fn table(out: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    out.push_str("<table><tr>");
    for head in heads {
        let _ = write!(out, "<th>{head}</th>");
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let class = match cell.as_str() {
                "FAULT" | "down" | "unresolved" => " class=\"bad\"",
                "MASTER" | "up" => " class=\"good\"",
                _ => "",
            };
            let _ = write!(out, "<td{class}>{}</td>", escaped(&cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn time(ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Text of others, error messages of real servers among it, is no markup.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_no_markup() {
        assert_eq!(
            escaped("<script>alert('\"&\"')</script>"),
            "&lt;script&gt;alert(&#39;&quot;&amp;&quot;&#39;)&lt;/script&gt;"
        );
    }
}
