//! `lbctl doctor`.

use lb_user::api::proto::Diagnosis;

/// Findings with their cures, or what was looked at in vain.
pub fn print(diagnosis: &Diagnosis) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    // Writing to a string does not fail.
    for finding in &diagnosis.findings {
        let _ = writeln!(text, "FOUND  {}: {}", finding.subject, finding.what);
        if !finding.cure.is_empty() {
            let _ = writeln!(text, "       {}", finding.cure);
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for examined in &diagnosis.examined {
        let _ = writeln!(text, "looked at: {examined}");
    }
    if diagnosis.findings.is_empty() {
        text.push_str("nothing found\n");
    }
    text
}
