//! `lbctl doctor`: a real server that answers ARP for the VIP is named, with its cure.

use lab::{Guide, network::INTERFACE};
use lb_user::api::proto::Diagnosis;

/// What is found beside the single receive queue that every veth has.
fn found(guide: &Guide, director: usize) -> Vec<(String, String)> {
    let director = [&guide.node1, &guide.node2][director];
    let output = director.lbctl(&["--json", "doctor"]).unwrap();
    let diagnosis: Diagnosis = serde_json::from_slice(&output.stdout).unwrap();
    let looked = diagnosis.examined.join("\n");
    assert!(
        looked.contains(&format!("who answers ARP for 10.1.15.50 on {INTERFACE}")),
        "{looked}"
    );
    assert_eq!(
        output.status.code(),
        Some(i32::from(!diagnosis.findings.is_empty()))
    );
    let findings = diagnosis.findings.into_iter();
    findings
        .filter(|finding| !finding.what.contains("one receive queue"))
        .map(|finding| {
            (
                finding.subject,
                format!("{}; {}", finding.what, finding.cure),
            )
        })
        .collect()
}

#[test]
fn names_the_real_server_that_answers_arp() {
    let guide = Guide::start().unwrap();
    for director in [0, 1] {
        assert_eq!(found(&guide, director), [], "the guide's pair is well");
    }
    for key in ["all", "lo", INTERFACE] {
        let key = format!("ipv4.conf.{key}.arp_ignore");
        guide.rs1.node().sysctl(&key, "0").unwrap();
    }
    for director in [0, 1] {
        let findings = found(&guide, director);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let (subject, text) = &findings[0];
        assert_eq!(subject, "real server 10.1.15.45");
        assert!(
            text.contains("answers ARP for 10.1.15.50") && text.contains("arp_ignore=1"),
            "{text}"
        );
    }
}
