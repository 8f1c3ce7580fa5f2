//! The file as written: every key optional, every value with its place.

mod check;
mod network;
pub mod notify;
mod pool;
mod track;
pub mod vrrp;

use std::{ops::Range, time::Duration};

use toml::de::DeTable;

pub use self::check::{RawCheck, RawDns, RawHttp, RawTls, RawUrl};
pub use self::network::{RawAddress, RawRoute, RawRule};
use self::notify::{RawMail, RawScripts, RawSyncGroup};
pub use self::pool::{RawMember, RawPool};
pub use self::track::{RawLinkDamping, RawTrack, RawTrackFile, RawTrackProcess, RawTrackScript};
use self::{
    check::check,
    network::{ADDRESSES, address, plain},
};
use super::{
    diagnostic::Diagnostic,
    reader::{At, Fields},
};

/// The whole file.
#[derive(Default)]
pub struct Raw {
    pub router_id: Option<At<String>>,
    pub runtime: Option<At<RawRuntime>>,
    pub dataplane: Option<At<RawDataplane>>,
    pub protection: Option<At<RawProtection>>,
    pub metrics: Option<At<RawMetrics>>,
    pub sync_daemon: Option<At<RawSyncDaemon>>,
    pub static_addresses: Vec<At<RawAddress>>,
    pub static_routes: Vec<At<RawRoute>>,
    pub static_rules: Vec<At<RawRule>>,
    pub track_scripts: Vec<At<RawTrackScript>>,
    pub track_processes: Vec<At<RawTrackProcess>>,
    pub track_files: Vec<At<RawTrackFile>>,
    pub instances: Vec<At<RawInstance>>,
    pub sync_groups: Vec<At<RawSyncGroup>>,
    pub mail: Option<At<RawMail>>,
    pub services: Vec<At<RawService>>,
}

#[derive(Default)]
pub struct RawRuntime {
    pub socket: Option<At<String>>,
    pub pin_path: Option<At<String>>,
    pub script_user: Option<At<String>>,
    pub notify_fifo: Option<At<String>>,
    pub notify_fifo_script: Option<At<Vec<String>>>,
}

#[derive(Default)]
pub struct RawDataplane {
    pub mode: Option<At<String>>,
    pub interfaces: Option<At<Vec<At<String>>>>,
    pub allow_generic: Option<At<bool>>,
    pub flow_slots: Option<At<i64>>,
    pub max_flow_slots: Option<At<i64>>,
    pub tcp_timeout: Option<At<Duration>>,
    pub tcp_closing_timeout: Option<At<Duration>>,
    pub tcp_half_open_timeout: Option<At<Duration>>,
    pub udp_timeout: Option<At<Duration>>,
}

pub struct RawSyncDaemon {
    pub interface: Option<At<String>>,
    pub vrrp: Option<At<String>>,
    pub id: Option<At<i64>>,
    pub max_length: Option<At<i64>>,
    pub group: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub ttl: Option<At<i64>>,
}

#[derive(Default)]
pub struct RawProtection {
    pub block: Option<At<Vec<At<String>>>>,
    pub allow: Option<At<Vec<At<String>>>>,
    pub block_file: Option<At<String>>,
    pub allow_file: Option<At<String>>,
    pub new_connections_per_source: Option<At<i64>>,
    pub new_connections_per_source_burst: Option<At<i64>>,
}

#[derive(Default)]
pub struct RawMetrics {
    pub listen: Option<At<String>>,
}

pub struct RawInstance {
    pub name: Option<At<String>>,
    pub interface: Option<At<String>>,
    pub version: Option<At<i64>>,
    pub virtual_router_id: Option<At<i64>>,
    pub priority: Option<At<i64>>,
    pub advert_interval: Option<At<Duration>>,
    pub preempt: Option<At<bool>>,
    pub preempt_delay: Option<At<Duration>>,
    pub source_address: Option<At<String>>,
    pub multicast_group: Option<At<String>>,
    pub unicast_peers: Option<At<Vec<At<String>>>>,
    pub unicast_ttl: Option<At<i64>>,
    pub unicast_min_ttl: Option<At<i64>>,
    pub unicast_max_ttl: Option<At<i64>>,
    pub checksum: Option<At<String>>,
    pub authentication: Option<At<String>>,
    pub password: Option<At<String>>,
    pub auth_hmac: Option<At<vrrp::RawHmac>>,
    pub announce: vrrp::RawAnnounce,
    pub addresses: Option<At<Vec<At<RawAddress>>>>,
    pub excluded_addresses: Option<At<Vec<At<RawAddress>>>>,
    pub use_virtual_mac: Option<At<bool>>,
    pub vmac_interface: Option<At<String>>,
    pub accept: Option<At<bool>>,
    pub routes: Vec<At<RawRoute>>,
    pub rules: Vec<At<RawRule>>,
    pub sync_group: Option<At<String>>,
    pub tracks: Vec<At<RawTrack>>,
    pub damping: RawLinkDamping,
    pub scripts: RawScripts,
    pub mail: Option<At<bool>>,
}

pub struct RawTunnel {
    pub kind: Option<At<String>>,
    pub port: Option<At<i64>>,
    pub checksum: Option<At<String>>,
}

pub struct RawService {
    pub address: Option<At<String>>,
    pub protocol: Option<At<String>>,
    pub fwmark: Option<At<i64>>,
    pub scheduler: Option<At<String>>,
    pub scheduler_flags: Option<At<Vec<At<String>>>>,
    pub forward: Option<At<String>>,
    pub tunnel: RawTunnel,
    pub persistence_timeout: Option<At<Duration>>,
    pub persistence_prefix: Option<At<i64>>,
    pub persistence_engine: Option<At<String>>,
    pub one_packet: Option<At<bool>>,
    pub new_connections_per_second: Option<At<i64>>,
    pub new_connections_burst: Option<At<i64>>,
    pub vrrp: Option<At<String>>,
    pub mail: Option<At<bool>>,
    pub sorry_server: Option<At<Vec<At<String>>>>,
    pub pool: RawPool,
    pub member: RawMember,
    pub checks: Vec<At<RawCheck>>,
    pub sorry_checks: Vec<At<RawCheck>>,
    pub backends: Vec<At<RawBackend>>,
}

pub struct RawBackend {
    pub address: Option<At<String>>,
    pub weight: Option<At<i64>>,
    pub upper_threshold: Option<At<i64>>,
    pub lower_threshold: Option<At<i64>>,
    pub member: RawMember,
    pub checks: Vec<At<RawCheck>>,
}

/// Reads the file as far as it can be read.
pub fn read(text: &str) -> (Raw, Vec<Diagnostic>) {
    let (document, syntax) = DeTable::parse_recoverable(text);
    let mut errors: Vec<Diagnostic> = syntax.iter().map(syntax_error).collect();
    if !errors.is_empty() {
        // What follows a syntax error is guesswork; complaints about it would mislead.
        return (Raw::default(), errors);
    }
    let mut fields = Fields::new("the file", no_place(), document.get_ref(), &mut errors);
    let raw = Raw {
        router_id: fields.string("router_id"),
        runtime: fields.table("runtime", runtime),
        dataplane: fields.table("dataplane", dataplane),
        protection: fields.table("protection", protection),
        metrics: fields.table("metrics", metrics),
        sync_daemon: fields.table("lvs_sync_daemon", sync_daemon),
        static_addresses: fields.tables("static_address", address),
        static_routes: fields.tables("static_route", network::route),
        static_rules: fields.tables("static_rule", network::rule),
        track_scripts: fields.tables("track_script", track::track_script),
        track_processes: fields.tables("track_process", track::track_process),
        track_files: fields.tables("track_file", track::track_file),
        instances: fields.tables("vrrp", instance),
        sync_groups: fields.tables("sync_group", notify::sync_group),
        mail: fields.table("mail", notify::mail),
        services: fields.tables("service", service),
    };
    fields.finish();
    (raw, errors)
}

fn no_place() -> Range<usize> {
    0..0
}

fn syntax_error(error: &toml::de::Error) -> Diagnostic {
    Diagnostic {
        span: error.span().unwrap_or_else(no_place),
        message: format!("not valid TOML: {}", error.message().replace('\n', ", ")),
        help: None,
    }
}

fn runtime(fields: &mut Fields<'_, '_>) -> RawRuntime {
    RawRuntime {
        socket: fields.string("socket"),
        pin_path: fields.string("pin_path"),
        script_user: fields.string("script_user"),
        notify_fifo: fields.string("notify_fifo"),
        notify_fifo_script: fields.command("notify_fifo_script"),
    }
}

fn dataplane(fields: &mut Fields<'_, '_>) -> RawDataplane {
    RawDataplane {
        mode: fields.string("mode"),
        interfaces: fields.strings("interfaces"),
        allow_generic: fields.boolean("allow_generic"),
        flow_slots: fields.integer("flow_slots"),
        max_flow_slots: fields.integer("max_flow_slots"),
        tcp_timeout: fields.duration("tcp_timeout"),
        tcp_closing_timeout: fields.duration("tcp_closing_timeout"),
        tcp_half_open_timeout: fields.duration("tcp_half_open_timeout"),
        udp_timeout: fields.duration("udp_timeout"),
    }
}

fn sync_daemon(fields: &mut Fields<'_, '_>) -> RawSyncDaemon {
    let raw = RawSyncDaemon {
        interface: fields.string("interface"),
        vrrp: fields.string("vrrp"),
        id: fields.integer("id"),
        max_length: fields.integer("max_length"),
        group: fields.string("group"),
        port: fields.integer("port"),
        ttl: fields.integer("ttl"),
    };
    for (key, help) in [
        (
            "interface",
            "the interface that leads to the other director",
        ),
        ("vrrp", "the VRRP instance that decides which end this is"),
    ] {
        if !fields.was_given(key) {
            fields.missing(key, help);
        }
    }
    raw
}

fn protection(fields: &mut Fields<'_, '_>) -> RawProtection {
    RawProtection {
        block: fields.strings("block"),
        allow: fields.strings("allow"),
        block_file: fields.string("block_file"),
        allow_file: fields.string("allow_file"),
        new_connections_per_source: fields.integer("new_connections_per_source"),
        new_connections_per_source_burst: fields.integer("new_connections_per_source_burst"),
    }
}

fn metrics(fields: &mut Fields<'_, '_>) -> RawMetrics {
    RawMetrics {
        listen: fields.string("listen"),
    }
}

fn instance(fields: &mut Fields<'_, '_>) -> RawInstance {
    let raw = RawInstance {
        name: fields.string("name"),
        interface: fields.string("interface"),
        version: fields.integer("version"),
        virtual_router_id: fields.integer("virtual_router_id"),
        priority: fields.integer("priority"),
        advert_interval: fields.duration("advert_interval"),
        preempt: fields.boolean("preempt"),
        preempt_delay: fields.duration("preempt_delay"),
        source_address: fields.string("source_address"),
        multicast_group: fields.string("multicast_group"),
        unicast_peers: fields.strings("unicast_peers"),
        unicast_ttl: fields.integer("unicast_ttl"),
        unicast_min_ttl: fields.integer("unicast_min_ttl"),
        unicast_max_ttl: fields.integer("unicast_max_ttl"),
        checksum: fields.string("checksum"),
        authentication: fields.string("authentication"),
        password: fields.string("password"),
        auth_hmac: fields.table("auth_hmac", vrrp::hmac),
        announce: vrrp::announce(fields),
        addresses: fields.mixed("addresses", ADDRESSES, plain, address),
        excluded_addresses: fields.mixed("excluded_addresses", ADDRESSES, plain, address),
        use_virtual_mac: fields.boolean("use_virtual_mac"),
        vmac_interface: fields.string("vmac_interface"),
        accept: fields.boolean("accept"),
        routes: fields.tables("virtual_route", network::route),
        rules: fields.tables("virtual_rule", network::rule),
        sync_group: fields.string("sync_group"),
        tracks: fields.tables("track", track::track),
        damping: track::link_damping(fields),
        scripts: notify::scripts(fields),
        mail: fields.boolean("mail"),
    };
    for (key, present, help) in [
        (
            "name",
            fields.was_given("name"),
            "a name such as \"VI_1\", used in logs and scripts",
        ),
        (
            "interface",
            fields.was_given("interface"),
            "the interface that speaks VRRP",
        ),
        (
            "virtual_router_id",
            fields.was_given("virtual_router_id"),
            "1 to 255, the same on all directors of the pair",
        ),
        (
            "addresses",
            fields.was_given("addresses"),
            "the virtual addresses, such as [\"10.1.15.50/16\"]",
        ),
    ] {
        if !present {
            fields.missing(key, help);
        }
    }
    raw
}

fn service(fields: &mut Fields<'_, '_>) -> RawService {
    let raw = RawService {
        address: fields.string("address"),
        protocol: fields.string("protocol"),
        fwmark: fields.integer("fwmark"),
        scheduler: fields.string("scheduler"),
        scheduler_flags: fields.strings("scheduler_flags"),
        forward: fields.string("forward"),
        tunnel: RawTunnel {
            kind: fields.string("tunnel_type"),
            port: fields.integer("tunnel_port"),
            checksum: fields.string("tunnel_checksum"),
        },
        persistence_timeout: fields.duration("persistence_timeout"),
        persistence_prefix: fields.integer("persistence_prefix"),
        persistence_engine: fields.string("persistence_engine"),
        one_packet: fields.boolean("one_packet"),
        new_connections_per_second: fields.integer("new_connections_per_second"),
        new_connections_burst: fields.integer("new_connections_burst"),
        vrrp: fields.string("vrrp"),
        mail: fields.boolean("mail"),
        sorry_server: fields.words("sorry_server"),
        pool: pool::pool(fields),
        member: pool::member(fields),
        checks: fields.one_or_more("check", check),
        sorry_checks: fields.one_or_more("sorry_check", check),
        backends: fields.tables("backend", backend),
    };
    if !fields.was_given("address") {
        fields.missing("address", "VIP and port, such as \"10.1.15.50:80\"");
    }
    raw
}

fn backend(fields: &mut Fields<'_, '_>) -> RawBackend {
    let raw = RawBackend {
        address: fields.string("address"),
        weight: fields.integer("weight"),
        upper_threshold: fields.integer("upper_threshold"),
        lower_threshold: fields.integer("lower_threshold"),
        member: pool::member(fields),
        checks: fields.one_or_more("check", check),
    };
    if !fields.was_given("address") {
        fields.missing(
            "address",
            "the real server's own address, such as \"10.1.15.45\"",
        );
    }
    raw
}
