//! Adverts of routers that are configured otherwise, or that are not meant: each is told with whom it is, once, and
//! counted.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lab::{Director, Lab, network::INTERFACE, sniffer::Sniffer, wait};
use lb_user::{
    api::proto::{EventPage, InstanceStatus},
    events::Kind,
    model::{
        Auth, ChecksumForm, Instance, Prefix, UnicastTtl,
        VrrpState::{Backup, Master},
        VrrpVersion,
    },
    vrrp::packet::AdvertPacket,
};

use crate::adverts;

const METRICS: &str = "127.0.0.1:9112";
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 1);
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 1, 15, 43);
const PRIORITY: u8 = 50;

/// An advert of the other router, which would not be master.
fn advert(form: ChecksumForm, change: impl FnOnce(&mut Instance)) -> Vec<u8> {
    let instance = adverts::instance(change);
    let mut packet = AdvertPacket::new(&instance, OTHER.into());
    packet.next(PRIORITY, Duration::ZERO);
    packet.to(instance.group, form).to_vec()
}

/// Of the instance of version 3.
fn third(instance: &mut Instance) {
    instance.version = VrrpVersion::V3;
    instance.auth = Auth::None;
    instance.vrid = 21;
}

fn events(director: &Director) -> EventPage {
    let text = director.ctl(&["--json", "events"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn each_is_an_event_and_a_metric_with_the_peer() {
    let instance = |name: &str, vrid: u8, more: &str| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\npriority = 100\n\
             multicast_group = \"224.15.15.15\"\naddresses = [\"10.1.15.50/16\"]\n{more}"
        )
    };
    let config = format!("[metrics]\nlisten = \"{METRICS}\"\n")
        + &instance("VI_1", 20, "password = \"6b8a916c\"\n")
        + &instance("VI_2", 21, "version = 3\nchecksum = \"rfc9568\"\n")
            .replace("10.1.15.50", "10.1.15.51");
    let (message, pseudo_header) = (ChecksumForm::Message, ChecksumForm::PseudoHeader);
    let other_list = vec![Prefix {
        address: [10, 1, 15, 99].into(),
        length: 16,
    }];
    let mut broken = advert(message, |_| {});
    broken[27] ^= 1;
    let of_third = |form, change: &dyn Fn(&mut Instance)| {
        advert(form, |i| {
            third(i);
            i.addresses[0].address = [10, 1, 15, 51].into();
            change(i);
        })
    };
    let two_seconds = |i: &mut Instance| i.advert_interval = Duration::from_secs(2);
    let rows: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "VI_1",
            "wrong_version",
            advert(message, |i| i.version = VrrpVersion::V3),
        ),
        ("VI_1", "wrong_interval", advert(message, two_seconds)),
        (
            "VI_1",
            "wrong_password",
            advert(message, |i| i.auth = Auth::Pass(*b"guessed!")),
        ),
        (
            "VI_1",
            "wrong_auth_type",
            advert(message, |i| i.auth = Auth::None),
        ),
        // No instance can be named: the bytes may be wrong that say which.
        ("VI_1", "wrong_checksum", broken),
        (
            "VI_1",
            "other_addresses",
            advert(message, |i| i.addresses = other_list),
        ),
        ("VI_2", "other_interval", of_third(message, &two_seconds)),
        ("VI_2", "other_checksum", of_third(pseudo_header, &|_| {})),
    ];
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", DIRECTOR.octets()).unwrap();
    let other = lab.node("other", OTHER.octets()).unwrap();
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    for name in ["VI_1", "VI_2"] {
        director.wait_for(name, Master).unwrap();
    }
    for (_, _, packet) in rows.iter().chain(&rows) {
        let packet = packet.clone();
        other.within(move || adverts::send(&packet)).unwrap();
    }
    let peer = OTHER.to_string();
    for (name, what, _) in &rows {
        let event = wait::until(what, Duration::from_secs(5), || {
            let of_it = format!("{what}: ");
            let all = events(&director).events.into_iter();
            let mut found = all.filter(|e| {
                e.kind == Kind::Disagreement && e.text.starts_with(&of_it) && e.count == 2
            });
            Ok(found.next())
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}", events(&director)));
        assert_eq!(event.peer.as_ref(), Some(&peer), "{what}");
        let subject = match *what {
            "wrong_checksum" => INTERFACE,
            _ => name,
        };
        assert_eq!(event.subject, subject, "{what}");
    }
    let url = format!("http://{METRICS}/metrics");
    let text = node.run("curl", &["--silent", "--fail", &url]).unwrap();
    for (name, what, _) in &rows {
        let has = |line: &str| {
            let labels = [("instance", *name), ("what", what), ("peer", &peer)];
            let is_labelled =
                |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
            line.starts_with("lbd_vrrp_disagreements_total{")
                && labels.iter().all(is_labelled)
                && line.ends_with(" 2")
        };
        assert!(text.lines().any(has), "{what}: {text}");
    }
    let log = director.log();
    let told = log.lines().filter(|line| line.contains(&peer)).count();
    assert!(told <= rows.len() + 2, "each once: {log}");
    director.stop().unwrap();
}

/// With peers that are spoken to one by one: who is not listed, or comes from too far, is not heard.
#[test]
fn only_listed_peers_within_bounds_of_ttl_are_believed() {
    let stranger = Ipv4Addr::new(10, 1, 15, 2);
    let config = format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = 21\nversion = 3\npriority = 100\n\
         unicast_peers = [\"{OTHER}\"]\nunicast_ttl = 64\nunicast_min_ttl = 60\nunicast_max_ttl = 70\n\
         addresses = [\"10.1.15.50/16\"]\n"
    );
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", DIRECTOR.octets()).unwrap();
    let other = lab.node("other", OTHER.octets()).unwrap();
    let third_host = lab.node("stranger", stranger.octets()).unwrap();
    let sniffer = Sniffer::start(&other).unwrap();
    let mut director = Director::new(&lab, &node, &config).unwrap();
    director.start(&lab).unwrap();
    director.wait_for("VI_1", Master).unwrap();
    let status = || -> InstanceStatus { director.status().unwrap().instances.remove(0) };
    let since = status().since;
    // Each would make lbd yield.
    let forged = |source: Ipv4Addr, to: Ipv4Addr, ttl: u8| {
        let instance = adverts::instance(|i| {
            third(i);
            i.peers = vec![DIRECTOR.into()];
            i.unicast_ttl = UnicastTtl {
                sent: ttl,
                accepted: 0..=255,
            };
        });
        let mut packet = AdvertPacket::new(&instance, source.into());
        packet.next(250, Duration::ZERO);
        let bytes = packet.to(IpAddr::from(to), ChecksumForm::Message).to_vec();
        let host = if source == OTHER { &other } else { &third_host };
        host.within(move || adverts::send_to(&bytes, to)).unwrap();
    };
    let group = Ipv4Addr::new(224, 0, 0, 18);
    for (what, count, source, to, ttl) in [
        ("wrong_ttl", 1, OTHER, DIRECTOR, 59),
        ("wrong_ttl", 2, OTHER, DIRECTOR, 71),
        ("unknown_peer", 1, stranger, DIRECTOR, 64),
        ("unknown_peer", 2, stranger, DIRECTOR, 255),
    ] {
        forged(source, to, ttl);
        wait::until_true(what, Duration::from_secs(3), || {
            let rejected = status().rejected;
            Ok(rejected.iter().any(|(w, c)| w == what && *c == count))
        })
        .unwrap_or_else(|error| panic!("{source} {ttl}: {error}: {:?}", status().rejected));
    }
    // Nobody who speaks to peers is in the group.
    forged(OTHER, group, 255);
    let before = status().sent;
    wait::until_true("another advert", Duration::from_secs(3), || {
        Ok(status().sent > before)
    })
    .unwrap();
    let now = status();
    assert_eq!((now.state, now.since, now.received), (Master, since, 0));
    for ttl in [70, 60] {
        forged(OTHER, DIRECTOR, ttl);
        director.wait_for("VI_1", Backup).unwrap();
        assert_eq!(status().peer.unwrap().address, OTHER.to_string());
        director.wait_for("VI_1", Master).unwrap();
    }
    let frames = sniffer.stop().unwrap();
    let adverts: Vec<&Vec<u8>> = frames
        .iter()
        .map(|(_, frame)| frame)
        .filter(|f| {
            f.len() >= 42 && f[12..14] == [8, 0] && f[23] == 112 && f[26..30] == DIRECTOR.octets()
        })
        .collect();
    assert!(adverts.len() >= 2, "{}", adverts.len());
    for frame in adverts {
        assert_eq!((frame[22], &frame[30..34]), (64, &OTHER.octets()[..]));
    }
    director.stop().unwrap();
}
