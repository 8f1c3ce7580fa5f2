//! Scripts, FIFO and mail as text for people.

use lb_user::api::proto::{FifoStatus, GroupStatus, MailStatus, ScriptCounts, Status};

use crate::print::{line, since};

/// Lines of `lbctl status`.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    if let Some(fifo) = &status.fifo {
        line(&mut out, fifo_line(fifo));
    }
    if let Some(mail) = &status.mail {
        line(&mut out, mail_line(mail));
    }
    out
}

/// Sync groups, in `lbctl vrrp`.
pub fn groups(groups: &[GroupStatus]) -> String {
    let mut out = String::new();
    for group in groups {
        let state = match group.state {
            Some(state) => format!("all entered {state} last"),
            None => "not together in any state yet".to_owned(),
        };
        let members = group.members.join(" ");
        line(
            &mut out,
            format!("sync group {}: {members}; {state}", group.name),
        );
        out.push_str(&scripts(&group.scripts));
    }
    out
}

/// The line of notify scripts; none where nothing ever ran.
pub fn scripts(counts: &ScriptCounts) -> String {
    let mut out = String::new();
    if counts.runs + counts.waiting + counts.dropped == 0 {
        return out;
    }
    let mut text = format!(
        "  notify scripts: {} run, {} failed, {} killed at the limit, {} dropped, {} wait",
        counts.runs, counts.failed, counts.timed_out, counts.dropped, counts.waiting
    );
    if let Some(last) = &counts.last_failure {
        text += &format!(
            "; last failure {}: {}: {}",
            since(last.at),
            last.command,
            last.what
        );
    }
    line(&mut out, text);
    out
}

fn fifo_line(fifo: &FifoStatus) -> String {
    let mut text = format!(
        "fifo        {}: {} lines written, {} wait, {} dropped",
        fifo.path, fifo.written, fifo.waiting, fifo.dropped
    );
    if let Some(reader) = &fifo.reader {
        let state = match (reader.pid, &reader.last_end) {
            (Some(pid), _) => format!("pid {pid}, started {} times", reader.starts),
            (None, Some(end)) => format!("does not run: {end}"),
            (None, None) => "does not run yet".to_owned(),
        };
        text += &format!("; {}: {state}", reader.command);
    }
    text
}

fn mail_line(mail: &MailStatus) -> String {
    let mut text = format!(
        "mail        {}: {} sent, {} failed, {} dropped, {} wait",
        mail.server, mail.sent, mail.failed, mail.dropped, mail.waiting
    );
    if mail.refused_recipients > 0 {
        text += &format!(", {} recipients refused", mail.refused_recipients);
    }
    if let (Some(error), Some(at)) = (&mail.last_error, mail.last_error_at) {
        text += &format!("; last error {}: {error}", since(at));
    }
    text
}
