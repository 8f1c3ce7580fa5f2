//! When a master announces its addresses, heard by a host of the network.

use std::time::Duration;

use lab::{
    Director, Lab, Node,
    network::INTERFACE,
    sniffer::{Frame, Sniffer},
    wait,
};
use lb_user::{
    model::VrrpState::{Backup, Master},
    vrrp::packet::AdvertPacket,
};

use crate::adverts;

const VIP: [u8; 4] = [10, 1, 15, 50];
const OTHER: [u8; 4] = [10, 1, 15, 51];
const VIP6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
const GROUP: [u8; 4] = [224, 0, 0, 18];

fn config(interval: &str, more: &str) -> String {
    format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nversion = 3\nvirtual_router_id = 20\n\
         priority = 100\nadvert_interval = \"{interval}\"\naddresses = [\"10.1.15.50/16\", \"10.1.15.51/16\"]\n\
         excluded_addresses = [\"2001:db8::50/64\"]\n{more}"
    )
}

/// Times of the gratuitous ARP for an address.
fn announced(frames: &[Frame], address: [u8; 4]) -> Vec<Duration> {
    let is_one = |frame: &[u8]| {
        frame.len() >= 42
            && frame[..6] == [0xff; 6]
            && frame[12..14] == [8, 6]
            && frame[28..32] == address
            && frame[38..42] == address
    };
    let of = frames.iter().filter(|(_, frame)| is_one(frame));
    of.map(|(time, _)| *time).collect()
}

/// Times of the unsolicited neighbour advertisements for the IPv6 address.
fn announced_v6(frames: &[Frame]) -> Vec<Duration> {
    let is_one = |frame: &[u8]| {
        frame.len() >= 78
            && frame[..6] == [0x33, 0x33, 0, 0, 0, 1]
            && frame[12..14] == [0x86, 0xdd]
            && frame[20] == 58
            && frame[54] == 136
            && frame[62..78] == VIP6.octets()
            // Override; the kernel's own, which duplicate address detection ends with, has it too.
            && frame[58] & 0x20 != 0
    };
    let of = frames.iter().filter(|(_, frame)| is_one(frame));
    of.map(|(time, _)| *time).collect()
}

/// Priorities of a router's adverts, with their times.
fn adverts_of(frames: &[Frame], source: [u8; 4]) -> Vec<(Duration, u8)> {
    let is_one = |frame: &[u8]| {
        frame.len() >= 42 && frame[12..14] == [8, 0] && frame[23] == 112 && frame[26..30] == source
    };
    let of = frames.iter().filter(|(_, frame)| is_one(frame));
    of.map(|(time, frame)| (*time, frame[36])).collect()
}

fn pair(config: &str) -> (Lab, Node, Director) {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let ear = lab.node("ear", [10, 1, 15, 1]).unwrap();
    let lbd = Director::new(&lab, &node, config).unwrap();
    (lab, ear, lbd)
}

/// Announcements between two times after the first, in seconds.
fn between(times: &[Duration], from: f64, to: f64) -> usize {
    let after = |time: &Duration| (*time - times[0]).as_secs_f64();
    times
        .iter()
        .filter(|time| (from..to).contains(&after(time)))
        .count()
}

#[test]
fn a_new_master_announces_as_configured() {
    let (lab, ear, mut lbd) = pair(&config(
        "100ms",
        "garp_master_repeat = 3\ngarp_repeat_interval = \"200ms\"\ngarp_master_delay = \"3s\"\n\
         garp_master_refresh = \"6s\"\ngarp_master_refresh_repeat = 2\ngarp_interval = \"30ms\"\n",
    ));
    let sniffer = Sniffer::start(&ear).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", Master).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let status = lbd.status().unwrap();
    let frames = sniffer.stop().unwrap();
    for address in [VIP, OTHER] {
        let times = announced(&frames, address);
        assert_eq!(between(&times, 0.0, 2.0), 3, "the first batch: {times:?}");
        assert_eq!(between(&times, 2.0, 5.0), 3, "the second batch: {times:?}");
        assert_eq!(between(&times, 5.0, 7.5), 2, "the refresh: {times:?}");
        assert!(
            times[1] - times[0] >= Duration::from_millis(150),
            "rounds keep their distance: {times:?}"
        );
    }
    let v6 = announced_v6(&frames);
    assert!(v6.len() >= 8, "as many for IPv6: {v6:?}");
    let mut all = [announced(&frames, VIP), announced(&frames, OTHER)].concat();
    all.sort();
    let closest = all.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    assert!(closest >= Duration::from_millis(25), "{closest:?}");
    let counted = status.instances[0].announcements;
    assert!(counted >= 24, "three addresses in eight rounds: {counted}");
    lbd.stop().unwrap();
}

/// An advert of another router of the same instance.
fn forged(priority: u8) -> Vec<u8> {
    let mut packet = AdvertPacket::new(
        &adverts::instance(|instance| {
            instance.version = lb_user::model::VrrpVersion::V3;
            instance.auth = lb_user::model::Auth::None;
            instance.group = GROUP.into();
        }),
        [10, 1, 15, 1].into(),
    );
    packet.next(priority, Duration::ZERO);
    packet
        .to(GROUP.into(), lb_user::model::ChecksumForm::Message)
        .to_vec()
}

#[test]
fn a_master_answers_a_lower_priority_and_yields_with_a_last_word() {
    let (lab, ear, mut lbd) = pair(&config(
        "1s",
        "garp_master_repeat = 1\ngarp_master_delay = \"0s\"\ngarp_master_refresh = \"0s\"\n\
         garp_lower_prio_repeat = 2\ngarp_repeat_interval = \"100ms\"\n",
    ));
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", Master).unwrap();
    let heard = |action: &dyn Fn()| {
        let sniffer = Sniffer::start(&ear).unwrap();
        action();
        std::thread::sleep(Duration::from_millis(900));
        sniffer.stop().unwrap()
    };
    std::thread::sleep(Duration::from_millis(500));
    let quiet = heard(&|| {});
    assert!(announced(&quiet, VIP).is_empty(), "no refresh is wanted");

    let lower = heard(&|| {
        ear.within(|| adverts::send_to(&forged(50), GROUP.into()))
            .unwrap();
    });
    assert_eq!(announced(&lower, VIP).len(), 2);
    assert_eq!(announced(&lower, OTHER).len(), 2);

    let asked = heard(&|| drop(lbd.ctl(&["vrrp", "announce", "VI_1"]).unwrap()));
    assert_eq!(announced(&asked, VIP).len(), 1, "as a new master");

    // Right after an advert, so that the next one is not due.
    let before = lbd.status().unwrap().instances[0].sent;
    wait::until_true("an advert", Duration::from_secs(3), || {
        Ok(lbd.status()?.instances[0].sent > before)
    })
    .unwrap();
    let higher = heard(&|| {
        ear.within(|| adverts::send_to(&forged(200), GROUP.into()))
            .unwrap();
    });
    lbd.wait_for("VI_1", Backup).unwrap();
    let words = adverts_of(&higher, [10, 1, 15, 43]);
    assert_eq!(
        words
            .iter()
            .map(|(_, priority)| *priority)
            .collect::<Vec<_>>(),
        [100],
        "one last advert, so that the winner knows"
    );
    lbd.stop().unwrap();
}

/// Two masters, and no addresses that went and came: only hearing the other makes the one that stays announce.
/// It does so within an interval of the heal.
#[test]
fn the_survivor_of_a_partition_announces() {
    let config = |priority: u8| {
        let quiet =
            "garp_master_delay = \"0s\"\ngarp_master_repeat = 1\ngarp_master_refresh = \"0s\"\n";
        config("250ms", quiet).replace("priority = 100", &format!("priority = {priority}"))
    };
    let (lab, ear, mut survivor) = pair(&config(100));
    let node = lab.node("node2", [10, 1, 15, 44]).unwrap();
    let mut other = Director::new(&lab, &node, &config(90)).unwrap();
    survivor.start(&lab).unwrap();
    survivor.wait_for("VI_1", Master).unwrap();
    other.start(&lab).unwrap();
    other.wait_for("VI_1", Backup).unwrap();
    node.silently(false).unwrap();
    other.wait_for("VI_1", Master).unwrap();
    let since = survivor.status().unwrap().instances[0].since;

    let sniffer = Sniffer::start(&ear).unwrap();
    node.silently(true).unwrap();
    other.wait_for("VI_1", Backup).unwrap();
    // Everybody's next advert has come.
    let sent = survivor.status().unwrap().instances[0].sent;
    wait::until_true("two adverts", Duration::from_secs(3), || {
        Ok(survivor.status()?.instances[0].sent >= sent + 2)
    })
    .unwrap();
    let frames = sniffer.stop().unwrap();
    assert_eq!(survivor.status().unwrap().instances[0].since, since);
    let heard = adverts_of(&frames, [10, 1, 15, 44]);
    let first = heard.first().expect("the other speaks after the heal").0;
    let mac: Vec<u8> = (survivor.node.mac().unwrap().split(':'))
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let of_survivor: Vec<Frame> = frames
        .into_iter()
        .filter(|(_, frame)| frame[6..12] == mac[..])
        .collect();
    for address in [VIP, OTHER] {
        let times = announced(&of_survivor, address);
        let soon = times.iter().any(|time| {
            *time + Duration::from_millis(1) >= first && *time <= first + Duration::from_millis(250)
        });
        assert!(soon, "{times:?} after {first:?}");
    }
    assert!(!announced_v6(&of_survivor).is_empty());
    survivor.stop().unwrap();
    other.stop().unwrap();
}

/// Clients have the old MAC address of an interface that gets another one.
#[test]
fn a_changed_mac_address_is_announced() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let quiet = "garp_master_delay = \"0s\"\ngarp_master_refresh = \"0s\"\n";
    let mut lbd = Director::new(&lab, &node, &config("1s", quiet)).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", Master).unwrap();
    let sent = |count: u64| {
        let what = format!("{count} announcements");
        let sent = || Ok(lbd.status()?.instances[0].announcements >= count);
        wait::until_true(&what, Duration::from_secs(15), sent).unwrap();
    };
    // Five rounds of three addresses.
    sent(15);
    let sniffer = Sniffer::start(&client).unwrap();
    let mac = [2, 0, 0, 0, 0xab, 0xcd];
    let address = "02:00:00:00:ab:cd";
    node.ip(&["link", "set", INTERFACE, "address", address])
        .unwrap();
    sent(18);
    let frames = sniffer.stop().unwrap();
    let of_new: Vec<Frame> = frames
        .into_iter()
        .filter(|(_, frame)| frame[6..12] == mac)
        .collect();
    for address in [VIP, OTHER] {
        assert!(!announced(&of_new, address).is_empty(), "{address:?}");
    }
    assert!(!announced_v6(&of_new).is_empty());
}

/// Clients wait for the announcement; routes may take long.
#[test]
fn addresses_are_announced_before_routes_are_made() {
    let routes: String = (1..=250)
        .map(|n| format!("[[vrrp.virtual_route]]\ntype = \"blackhole\"\nto = \"203.0.{n}.0/24\"\n"))
        .collect();
    let lab = Lab::new().unwrap();
    let node = lab.node("node1", [10, 1, 15, 43]).unwrap();
    let client = lab.node("client", [10, 1, 15, 1]).unwrap();
    let mut lbd = Director::new(&lab, &node, &config("1s", &routes)).unwrap();
    let sniffer = Sniffer::start(&client).unwrap();
    let monitor = ["-tshort", "monitor", "route"];
    let monitor =
        lab::Process::start(&lab, &node, "monitor", "/sbin/ip".as_ref(), &monitor).unwrap();
    lbd.start(&lab).unwrap();
    lbd.wait_for("VI_1", Master).unwrap();
    wait::until_true("all routes are there", Duration::from_secs(10), || {
        Ok(monitor.log().contains("203.0.250.0/24"))
    })
    .unwrap();
    let first = announced(&sniffer.stop().unwrap(), VIP)[0];
    let log = monitor.log();
    let mut lines = log.lines().filter(|line| line.contains("203.0."));
    let line = lines.next().unwrap();
    // "[2026-11-24T22:57:15.735723] ...", of some zone of time: all of them differ by quarters of an hour.
    let numbers: Vec<f64> = line[12..27]
        .split(':')
        .map(|n| n.parse().unwrap())
        .collect();
    let route = (numbers[1] * 60.0 + numbers[2]) % 900.0;
    let later = (900.0 + route - first.as_secs_f64() % 900.0) % 900.0;
    assert!(later < 450.0, "announced {} s after {line}", 900.0 - later);
}
