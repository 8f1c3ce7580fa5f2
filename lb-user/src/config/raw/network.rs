//! Addresses, routes and rules as written.

use crate::config::reader::{At, Fields};

/// An address: a string, or a table with more.
#[derive(Default)]
pub struct RawAddress {
    pub address: Option<At<String>>,
    pub dev: Option<At<String>>,
    pub label: Option<At<String>>,
    pub broadcast: Option<At<String>>,
    pub scope: Option<At<String>>,
    pub prefix_route: Option<At<bool>>,
    pub dad: Option<At<bool>>,
    pub preferred: Option<At<bool>>,
}

pub struct RawRoute {
    pub kind: Option<At<String>>,
    pub to: Option<At<String>>,
    pub via: Option<At<String>>,
    pub dev: Option<At<String>>,
    pub source: Option<At<String>>,
    pub metric: Option<At<i64>>,
    pub table: Option<At<i64>>,
    pub scope: Option<At<String>>,
    pub onlink: Option<At<bool>>,
    pub mtu: Option<At<i64>>,
}

pub struct RawRule {
    pub kind: Option<At<String>>,
    pub family: Option<At<String>>,
    pub priority: Option<At<i64>>,
    pub from: Option<At<String>>,
    pub to: Option<At<String>>,
    pub iif: Option<At<String>>,
    pub oif: Option<At<String>>,
    pub fwmark: Option<At<i64>>,
    pub fwmask: Option<At<i64>>,
    pub invert: Option<At<bool>>,
    pub table: Option<At<i64>>,
}

/// What a list of addresses is, in words.
pub const ADDRESSES: &str = "a list of addresses, each a string or a table";

/// An address that is only a string.
pub fn plain(at: At<String>) -> RawAddress {
    RawAddress {
        address: Some(at),
        ..RawAddress::default()
    }
}

pub fn address(fields: &mut Fields<'_, '_>) -> RawAddress {
    let raw = RawAddress {
        address: fields.string("address"),
        dev: fields.string("dev"),
        label: fields.string("label"),
        broadcast: fields.string("broadcast"),
        scope: fields.string("scope"),
        prefix_route: fields.boolean("prefix_route"),
        dad: fields.boolean("dad"),
        preferred: fields.boolean("preferred"),
    };
    if !fields.was_given("address") {
        fields.missing(
            "address",
            "with its prefix length, such as \"10.1.15.50/16\"",
        );
    }
    raw
}

pub fn route(fields: &mut Fields<'_, '_>) -> RawRoute {
    let raw = RawRoute {
        kind: fields.string("type"),
        to: fields.string("to"),
        via: fields.string("via"),
        dev: fields.string("dev"),
        source: fields.string("source"),
        metric: fields.integer("metric"),
        table: fields.integer("table"),
        scope: fields.string("scope"),
        onlink: fields.boolean("onlink"),
        mtu: fields.integer("mtu"),
    };
    if !fields.was_given("to") {
        fields.missing("to", "a network such as \"192.0.2.0/24\", or \"default\"");
    }
    raw
}

pub fn rule(fields: &mut Fields<'_, '_>) -> RawRule {
    let raw = RawRule {
        kind: fields.string("type"),
        family: fields.string("family"),
        priority: fields.integer("priority"),
        from: fields.string("from"),
        to: fields.string("to"),
        iif: fields.string("iif"),
        oif: fields.string("oif"),
        fwmark: fields.integer("fwmark"),
        fwmask: fields.integer("fwmask"),
        invert: fields.boolean("invert"),
        table: fields.integer("table"),
    };
    if !fields.was_given("priority") {
        fields.missing(
            "priority",
            "rules of lower numbers are asked first, such as 1000",
        );
    }
    raw
}
