//! Reloads that give running virtual routers other names, and addresses to others: no other router, no client
//! and no script hears of it but where something has changed.

use std::{net::Ipv4Addr, time::Duration};

use lab::{
    Director, Guide, Process,
    guide::{self, Settings, VIP, VIP2},
    http::{self, Prober},
    network::INTERFACE,
    sniffer::{Frame, Sniffer},
};
use lb_user::model::VrrpState::{self, Backup, Master};

const INTERVAL: Duration = Duration::from_secs(1);
/// An advert that is missed makes a gap of two intervals.
const LONGEST_GAP: Duration = Duration::from_millis(1_900);
/// Long enough for an advert to be due between two reloads, at another time than the reload.
const BETWEEN: Duration = Duration::from_millis(1_300);

/// Name, virtual router id, priority and addresses of an instance.
type Row<'r> = (&'r str, u8, u8, &'r [&'r str]);

fn instances(rows: &[Row<'_>], more: &str) -> String {
    let one = |(name, vrid, priority, addresses): &Row<'_>| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\n\
             priority = {priority}\naddresses = {addresses:?}\n{more}"
        )
    };
    rows.iter().map(one).collect()
}

/// The guide's two services.
fn services() -> String {
    let both = guide::config(&Settings {
        second: Some(1),
        ..Settings::of(1)
    });
    both[both.find("[[service]]").unwrap()..].to_owned()
}

fn configure(director: &Director, rows: &[Row<'_>], more: &str) {
    let text = instances(rows, more) + &services();
    director.configure(&text).unwrap();
}

/// Interfaces of the pair, started: node1 with the first rows, node2 with the second.
fn pair(first: &[Row<'_>], second: &[Row<'_>], more: &str) -> Guide {
    let mut guide = Guide::prepare().unwrap();
    configure(&guide.node1, first, more);
    configure(&guide.node2, second, "");
    guide.node1.start(&guide.lab).unwrap();
    guide.node2.start(&guide.lab).unwrap();
    guide
}

/// State, priority and time of the last change.
fn known(director: &Director, name: &str) -> (VrrpState, u64) {
    let status = director.status().unwrap();
    let found = status.instances.iter().find(|i| i.name == name);
    let found = found.unwrap_or_else(|| panic!("no {name}"));
    (found.state, found.since)
}

/// Every IPv4 advert of a virtual router: when, from whom, with which priority.
fn adverts(frames: &[Frame], vrid: u8) -> Vec<(Duration, Ipv4Addr, u8)> {
    let advert = |(time, frame): &Frame| {
        let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
        let message = packet.get(usize::from(packet[0] & 15) * 4..)?;
        let source = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
        (packet[9] == 112 && *message.get(1)? == vrid).then_some((
            *time,
            source.into(),
            *message.get(2)?,
        ))
    };
    frames.iter().filter_map(advert).collect()
}

/// All adverts are of one router with one priority, and none is missed.
fn assert_uninterrupted(frames: &[Frame], vrid: u8, source: Ipv4Addr, priority: u8) {
    let all = adverts(frames, vrid);
    assert!(all.len() >= 3, "virtual router {vrid}: {all:?}");
    for pair in all.windows(2) {
        let gap = pair[1].0 - pair[0].0;
        assert!(
            gap < LONGEST_GAP,
            "virtual router {vrid}: {gap:?} in {all:?}"
        );
    }
    let is_its = |(_, from, of): &(Duration, Ipv4Addr, u8)| (*from, *of) == (source, priority);
    assert!(all.iter().all(is_its), "virtual router {vrid}: {all:?}");
}

fn reload(director: &mut Director) {
    director.ctl(&["reload"]).unwrap();
    std::thread::sleep(BETWEEN);
}

#[test]
fn a_master_changes_names_and_addresses_unnoticed() {
    let (one, two) = (format!("{VIP}/16"), format!("{VIP2}/16"));
    let (one, two) = (one.as_str(), two.as_str());
    let before: [Row<'_>; 2] = [
        ("VI_1", 20, 100, &[one, "10.1.15.71/16"]),
        ("VI_2", 30, 100, &[two]),
    ];
    let backup = before.map(|(name, vrid, _, addresses)| (name, vrid, 98, addresses));
    let mut guide = pair(&before, &backup, "");
    let log = guide.notify_log("names").unwrap();
    let more = format!("notify = \"{}\"\n", log.with_extension("sh").display());
    for name in ["VI_1", "VI_2"] {
        guide.node1.wait_for(name, Master).unwrap();
        guide.node2.wait_for(name, Backup).unwrap();
    }
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    let since = [known(&guide.node1, "VI_1"), known(&guide.node1, "VI_2")];
    let node = guide.node1.node.clone();
    let program = "/sbin/ip".as_ref();
    let monitor = Process::start(
        &guide.lab,
        &node,
        "monitor",
        program,
        &["monitor", "address"],
    )
    .unwrap();
    let sniffer = Sniffer::start(&guide.node2.node).unwrap();
    let limit = Duration::from_secs(1);
    let clients = [VIP, VIP2].map(|vip| Prober::start(&guide.client, vip, limit).unwrap());
    let all: [&[Row<'_>]; 5] = [
        // The virtual router ids are exchanged, and with them the addresses' routers,
        &[
            ("VI_1", 30, 100, &[one, "10.1.15.71/16"]),
            ("VI_2", 20, 100, &[two]),
        ],
        // one instance is called otherwise, and an address goes to the other one,
        &[
            ("VI_A", 30, 100, &["10.1.15.71/16"]),
            ("VI_2", 20, 100, &[one, two]),
        ],
        // and back, together with another,
        &[
            ("VI_A", 30, 100, &[one, two]),
            ("VI_2", 20, 100, &["10.1.15.72/16"]),
        ],
        // names go round, in another order of the file,
        &[
            ("VI_A", 20, 100, &["10.1.15.72/16"]),
            ("VI_B", 30, 100, &[two, one]),
        ],
        // and one ends; the other has its name and its addresses.
        &[("VI_A", 30, 100, &[two, one, "10.1.15.72/16"])],
    ];
    let (last, others) = all.split_last().unwrap();
    for rows in others {
        configure(&guide.node1, rows, &more);
        reload(&mut guide.node1);
    }
    let at_end = last.iter().map(|row| (row.0, row.1, 98, row.3));
    configure(&guide.node2, &at_end.collect::<Vec<_>>(), "");
    guide.node2.ctl(&["reload"]).unwrap();
    configure(&guide.node1, last, &more);
    reload(&mut guide.node1);

    for client in clients {
        let samples = client.finish().unwrap();
        let failed = http::failures(&samples);
        assert_eq!(failed, 0, "of {}\n{}", samples.len(), guide.node1.log());
    }
    let mut frames = sniffer.stop().unwrap();
    assert_uninterrupted(&frames, 30, node.address, 100);
    let farewell = adverts(&frames, 20)
        .iter()
        .find(|advert| advert.2 == 0)
        .map(|advert| advert.0);
    frames.retain(|(time, _)| Some(*time) < farewell);
    assert_uninterrupted(&frames, 20, node.address, 100);
    for vip in [VIP, VIP2] {
        let address = format!("{vip}/");
        let log = monitor.log();
        let lost = log
            .lines()
            .any(|line| line.starts_with("Deleted") && line.contains(&address));
        assert!(!lost, "{log}");
    }
    assert!(
        monitor.log().contains("Deleted"),
        "10.1.15.71 went, and the monitor sees it\n{}",
        monitor.log()
    );
    assert_eq!(
        known(&guide.node1, "VI_A"),
        since[1],
        "virtual router 30 all the time"
    );
    // Scripts hear of a name that is new, and of one that is another's after its own has ended.
    let told = std::fs::read_to_string(&log).unwrap();
    let lines = ["VI_A MASTER", "VI_B MASTER", "VI_A STOP", "VI_A MASTER"];
    let expected: String = lines
        .iter()
        .map(|line| format!("INSTANCE {line} 100\n"))
        .collect();
    assert_eq!(told, expected);
}

/// Virtual router ids are exchanged by two directors that are master of one each.
#[test]
fn mastership_goes_with_the_virtual_router_id() {
    let (one, two) = (format!("{VIP}/16"), format!("{VIP2}/16"));
    let (one, two): ([&str; 1], [&str; 1]) = ([&one], [&two]);
    let rows = |ids: [u8; 2], priorities: [u8; 2]| -> [Row<'_>; 2] {
        [
            ("VI_1", ids[0], priorities[0], &one),
            ("VI_2", ids[1], priorities[1], &two),
        ]
    };
    let mut guide = pair(&rows([20, 30], [100, 98]), &rows([20, 30], [98, 100]), "");
    let [node1, node2] = [&mut guide.node1, &mut guide.node2];
    for (director, states) in [(&*node1, [Master, Backup]), (node2, [Backup, Master])] {
        director.wait_for("VI_1", states[0]).unwrap();
        director.wait_for("VI_2", states[1]).unwrap();
    }
    let before = [known(node1, "VI_1"), known(node1, "VI_2")];
    let (at_client, at_node2) = (guide.client.clone(), node2.node.clone());
    let (ours, theirs) = (
        Sniffer::start(&at_node2).unwrap(),
        Sniffer::start(&at_client).unwrap(),
    );
    configure(node1, &rows([30, 20], [98, 100]), "");
    node1.ctl(&["reload"]).unwrap();
    configure(node2, &rows([30, 20], [100, 98]), "");
    reload(node2);
    std::thread::sleep(2 * INTERVAL);
    let (ours, theirs) = (ours.stop().unwrap(), theirs.stop().unwrap());
    assert_uninterrupted(&ours, 20, node1.node.address, 100);
    assert_uninterrupted(&theirs, 30, node2.node.address, 100);
    let after = [known(node1, "VI_2"), known(node1, "VI_1")];
    assert_eq!(after, before, "each virtual router is as it was");
    let held = |director: &Director| {
        let addresses = director.node.addresses().unwrap();
        [VIP, VIP2].map(|vip| addresses.contains(&vip.to_string()))
    };
    assert_eq!((held(node1), held(node2)), ([false, true], [true, false]));
    for vip in [VIP, VIP2] {
        http::get_many(&guide.client, vip, 4).unwrap();
    }
}
