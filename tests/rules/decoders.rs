//! What reads bytes of others is fuzzed.

use std::collections::BTreeMap;

use crate::source::{code, files, root};

/// Files with functions that make something of bytes, and the call by which a fuzz target gets there.
const FUZZED: &[(&str, &str)] = &[
    ("lb-common/src/capture.rs", "capture::Event::from_bytes("),
    (
        "lb-user/src/dataplane/genetlink/attribute.rs",
        "codec::answers(",
    ),
    ("lb-user/src/dataplane/ipvs/codec.rs", "codec::answers("),
    (
        "lb-user/src/dataplane/ipvs/codec/daemon.rs",
        "codec::answers(",
    ),
    (
        "lb-user/src/dataplane/ipvs/codec/destination.rs",
        "codec::answers(",
    ),
    (
        "lb-user/src/dataplane/ipvs/codec/service.rs",
        "codec::answers(",
    ),
    (
        "lb-user/src/dataplane/ipvs/codec/stats.rs",
        "codec::answers(",
    ),
    ("lb-user/src/dataplane/ipvs/sync.rs", "Message::decode("),
    ("lb-user/src/health/probe/grpc.rs", "grpc::status("),
    ("lb-user/src/health/probe/icmp.rs", ".is_reply("),
    ("lb-user/src/net/arp.rs", "arp::answer("),
    ("lb-user/src/net/firewall.rs", "firewall::first_error("),
    ("lb-user/src/track/file.rs", "Content::Bytes("),
    ("lb-user/src/track/proc_event.rs", "proc_event::decode("),
    ("lb-user/src/track/process.rs", "is_meant("),
    ("lb-user/src/vrrp/packet/ah.rs", "packet::decode("),
    ("lb-user/src/vrrp/packet/decode.rs", "packet::decode_v6("),
    ("lb-user/src/vrrp/packet/trailer.rs", "packet::decode("),
];

/// The others, and why they need none.
const NOT_FUZZED: &[(&str, &str)] = &[
    ("lb-common/src/checksum.rs", "a sum of any bytes"),
    (
        "lb-user/src/api/client.rs",
        "gives lines to serde_json, as the target `request` does",
    ),
    ("lb-user/src/api/web.rs", "writes"),
    ("lb-user/src/dataplane/genetlink.rs", "writes"),
    ("lb-user/src/dataplane/ipvs/feed.rs", "compares"),
    (
        "lb-user/src/dataplane/ipvs/kernel.rs",
        "gives datagrams to codec::answers",
    ),
    (
        "lb-user/src/dataplane/xdp/memory.rs",
        "reads the program that is compiled in",
    ),
    (
        "lb-user/src/dataplane/xdp/mod.rs",
        "gives frames to the program, which tests/cases/fuzz.rs exercises",
    ),
    ("lb-user/src/dataplane/xdp/object.rs", "likewise"),
    ("lb-user/src/dataplane/xdp/probes.rs", "likewise"),
    (
        "lb-user/src/dataplane/xdp/ways.rs",
        "one request to the kernel, whose attributes are read as those of IPVS are",
    ),
    (
        "lb-user/src/health/probe/dns.rs",
        "hickory reads it; tests/cases/health_hostile.rs has servers that send anything",
    ),
    (
        "lb-user/src/health/probe/http.rs",
        "a digest in words; hyper reads the rest",
    ),
    (
        "lb-user/src/health/probe/tls.rs",
        "gives certificates to rustls",
    ),
    ("lb-user/src/model/check.rs", "compares"),
    ("lb-user/src/vrrp/control.rs", "writes"),
    ("lb-user/src/net/announce.rs", "writes"),
    ("lb-user/src/vrrp/frame.rs", "writes"),
    ("lb-user/src/vrrp/socket.rs", "writes"),
];

/// Every function that gets bytes and gives something back, by file.
fn readers() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let all = ["lb-user/src", "lb-common/src"].map(|folder| files(folder, ".rs"));
    for (file, text) in all.into_iter().flatten() {
        if file.contains("/tests") {
            continue;
        }
        let text = code(&text.replace("#[cfg(test)]\nmod tests;", ""));
        for part in text.split("fn ").skip(1) {
            let signature = part.split('{').next().unwrap_or_default();
            let signature = signature.split(";\n").next().unwrap_or_default();
            let Some((parameters, result)) = signature.split_once("->") else {
                continue;
            };
            let gets_bytes = parameters.contains("[u8]") || parameters.contains("&[u8;");
            let writes = parameters.contains("&mut [u8]") || parameters.contains("Vec<u8>");
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let name: String = part.chars().take_while(|c| is_name(*c)).collect();
            if gets_bytes && !writes && !result.trim().is_empty() && !name.is_empty() {
                found.entry(file.clone()).or_default().push(name);
            }
        }
    }
    found
}

#[test]
fn every_reader_of_bytes_has_a_fuzz_target() {
    let targets = std::fs::read_to_string(root().join("tests/fuzz/targets.rs")).unwrap();
    let readers = readers();
    let mut wrong = Vec::new();
    for (file, names) in &readers {
        let calls: Vec<&str> = FUZZED
            .iter()
            .filter(|(of, _)| of == file)
            .map(|(_, call)| *call)
            .collect();
        let is_exempt = NOT_FUZZED.iter().any(|(of, _)| of == file);
        if calls.is_empty() && !is_exempt {
            wrong.push(format!("{file}: {} in no fuzz target", names.join(", ")));
        }
        for call in calls {
            if !targets.contains(call) {
                wrong.push(format!("{file}: no fuzz target calls {call}"));
            }
        }
    }
    for (file, _) in FUZZED.iter().chain(NOT_FUZZED) {
        if !readers.contains_key(*file) {
            wrong.push(format!("{file} reads no bytes any more"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
