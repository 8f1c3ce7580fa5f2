//! `lbctl events`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use hyper::Method;
use lb_user::api::{
    client::{self, ClientError},
    proto::{self, Event, EventPage},
};

/// How often it is asked for new events.
const POLL: Duration = Duration::from_millis(500);

/// Events after an id.
pub async fn page(socket: &Path, since: u64) -> Result<EventPage, ClientError> {
    let path = format!("{}?since={since}", proto::EVENTS);
    client::call(socket, Method::GET, &path).await
}

/// Prints events as they come, until interrupted or nobody reads any more.
pub async fn follow(socket: &Path, json: bool, since: u64) -> Result<String, ClientError> {
    let mut since = since;
    let mut started = None;
    loop {
        let mut news = page(socket, since).await?;
        if started.is_some_and(|started| started != news.started_ms) {
            // Another daemon, whose ids begin anew.
            news = page(socket, 0).await?;
        }
        started = Some(news.started_ms);
        since = news.latest;
        let text = match json {
            true => news.events.iter().map(line_of_json).collect(),
            false => print(&news),
        };
        let mut output = io::stdout();
        if output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .is_err()
        {
            return Ok(String::new());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(String::new()),
        }
    }
}

fn line_of_json(event: &Event) -> String {
    let json = serde_json::to_string(event).unwrap_or_default();
    format!("{json}\n")
}

/// A line for each.
pub fn print(page: &EventPage) -> String {
    let mut out = String::new();
    if page.lost > 0 {
        let _ = writeln!(out, "{} older events are not kept any more", page.lost);
    }
    for event in &page.events {
        let _ = write!(
            out,
            "{}  {:>5}  {:<12}  ",
            time(event.at_ms),
            event.id,
            event.kind.label()
        );
        if !event.subject.is_empty() {
            let _ = write!(out, "{}: ", event.subject);
        }
        if let Some(peer) = &event.peer {
            let _ = write!(out, "[{peer}] ");
        }
        out.push_str(&event.text);
        if event.count > 1 {
            let _ = write!(
                out,
                " ({} times, the last {})",
                event.count,
                time(event.last_ms)
            );
        }
        out.push('\n');
    }
    out
}

fn time(ms: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms))
}
