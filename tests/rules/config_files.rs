//! The files in config/ are valid, and the example knows every key.

use std::collections::{BTreeMap, BTreeSet};

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

/// A key of a table; the whole file's is called as its reader calls it.
type Keys = BTreeMap<String, BTreeSet<String>>;

/// What the reader calls the table around all others.
const TOP: &str = "the file";

/// The table that a line begins, by the last part of its name: `backend` of `[[service.backend]]`.
fn header(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.trim_matches(['[', ']']);
    name.rsplit('.').next()
}

/// The key that a line gives; one that is not in force stands behind `# `, written as it would be in force.
fn key(line: &str) -> Option<&str> {
    let hidden = line.strip_prefix("# ");
    let (key, value) = hidden.unwrap_or(line).split_once(" = ")?;
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_closed = |open, close| value.starts_with(open) && value.ends_with(close);
    let is_value = matches!(value, "true" | "false")
        || is_closed('"', '"')
        || is_closed('[', ']')
        || value.parse::<i64>().is_ok();
    (key.chars().all(is_word) && (hidden.is_none() || is_value)).then_some(key)
}

/// Which keys the reader knows in each table of the example, in its own words: it names them to whoever gives one
/// that is like none of them.
fn known_keys(example: &str) -> Keys {
    const ODD: &str = "there_is_no_key_of_such_a_name = 1\n";
    let odd: String = example
        .lines()
        .map(|line| match header(line) {
            Some(_) => format!("{line}\n{ODD}"),
            None => format!("{line}\n"),
        })
        .collect();
    let error = config::parse("example", &format!("{ODD}{odd}"), "host").unwrap_err();
    let text = error.to_string();
    let mut keys = Keys::new();
    let mut table = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("unknown key `") {
            table = rest.split('`').nth(2).map(str::to_owned);
        } else if let Some((_, known)) = line.split_once("help: known keys: ")
            && let Some(table) = table.take()
        {
            let known = known.split(", ").map(str::to_owned);
            keys.entry(table).or_default().extend(known);
        }
    }
    assert!(keys.len() > 20 && keys.contains_key(TOP), "{keys:?}");
    keys
}

/// The table that documents the keys of this one: some are read as another one is.
fn read_as(table: &str) -> &str {
    match table {
        "sorry_check" => "check",
        "virtual_route" => "static_route",
        "virtual_rule" => "static_rule",
        other => other,
    }
}

#[test]
fn the_example_documents_every_key() {
    let example = std::fs::read_to_string(root().join("config/lbd.example.toml")).unwrap();
    let mut documented = Keys::new();
    // Whether the line before is a comment, and whether its paragraph has one so far.
    let (mut commented, mut introduced) = (false, false);
    let mut table = TOP;
    for line in example.lines() {
        let found = match header(line) {
            Some(name) => {
                let path = line.trim_matches(['[', ']']);
                let parent = path.rsplit('.').nth(1).unwrap_or(TOP);
                table = name;
                Some((read_as(parent), name))
            }
            None => key(line).map(|key| (read_as(table), key)),
        };
        if let Some((table, key)) = found {
            let is_known = |keys: &BTreeSet<String>| keys.contains(key);
            let here = documented.get(table).is_some_and(is_known);
            // "As with instances" is enough for what instances have.
            let elsewhere = introduced && documented.values().any(is_known);
            assert!(
                commented || here || elsewhere,
                "`{key}` of `{table}` has no comment"
            );
            let keys = documented.entry(table.to_owned()).or_default();
            keys.insert(key.to_owned());
        }
        commented = line.starts_with('#');
        introduced = commented || introduced && !line.is_empty();
    }
    // The keys of a single request may stand in the check itself.
    let request = documented["url"].clone();
    documented.get_mut("check").unwrap().extend(request);
    let mut wrong = Vec::new();
    for (table, known) in &known_keys(&example) {
        let documented = &documented[read_as(table)];
        let missing = known.difference(documented);
        wrong.extend(missing.map(|key| format!("`{key}` of `{table}` is missing")));
        let invented = documented.difference(known);
        wrong.extend(invented.map(|key| format!("`{key}` of `{table}` is invented")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whoever begins with the example chooses IPVS for himself.
#[test]
fn nothing_in_the_example_needs_ipvs() {
    let example = std::fs::read_to_string(root().join("config/lbd.example.toml")).unwrap();
    let config = config::parse("example", &example, "host").unwrap();
    for service in &config.services {
        assert_eq!(service.xdp_lacks(), None, "{}", service.id);
    }
    assert!(!config.services.is_empty());
}
