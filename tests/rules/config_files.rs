//! The files in config/ are valid, and the example knows every key.

use std::collections::BTreeSet;

use lb_user::config;

use crate::source::{files, root};

#[test]
fn every_configuration_is_valid() {
    for (name, text) in files("config", ".toml") {
        if let Err(error) = config::parse(&name, &text, "host") {
            panic!("{error}");
        }
    }
}

/// Keys that the reader asks for, taken from its source: `fields.string("router_id")` and the like.
fn known_keys() -> BTreeSet<String> {
    let all = files("lb-user/src/config", ".rs").into_iter();
    let source: String = all
        .filter(|(name, _)| name.starts_with("lb-user/src/config/raw"))
        .map(|(_, text)| text)
        .collect();
    let mut keys = BTreeSet::new();
    for getter in [
        "string",
        "strings",
        "integer",
        "boolean",
        "duration",
        "command",
        "words",
        "table",
        "tables",
        "one_or_more",
        "mixed",
    ] {
        for rest in source.split(&format!("fields.{getter}(\"")).skip(1) {
            keys.insert(rest.split('"').next().unwrap().to_owned());
        }
    }
    assert!(keys.len() > 40, "{keys:?}");
    keys
}

#[test]
fn the_example_documents_every_key() {
    let example = std::fs::read_to_string(root().join("config/lbd.example.toml")).unwrap();
    let mut documented = BTreeSet::new();
    let mut commented = false;
    for line in example.lines() {
        let key = if let Some(table) = line.strip_prefix('[') {
            let name = table.trim_matches(|c| c == '[' || c == ']');
            Some(name.rsplit('.').next().unwrap().to_owned())
        } else {
            line.split_once(" = ")
                .filter(|_| !line.starts_with('#'))
                .map(|(key, _)| key.to_owned())
        };
        if let Some(key) = key {
            assert!(
                commented || documented.contains(&key),
                "{key} has no comment"
            );
            documented.insert(key);
        }
        commented = line.starts_with('#');
    }
    let known = known_keys();
    let missing: Vec<_> = known.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing {missing:?}, invented {invented:?}"
    );
}
