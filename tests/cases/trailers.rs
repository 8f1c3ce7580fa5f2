//! A pair whose adverts carry trailers: who is believed, who is not, and a key that is changed meanwhile.

use std::{fs, path::Path, time::Duration};

use lab::{
    Director, Lab, Node,
    network::INTERFACE,
    sniffer::{Frame, Sniffer},
    wait,
};
use lb_user::{
    model::{
        Auth, ChecksumForm, HmacAuth, HmacKey, HmacMode, Secret,
        VrrpState::{Backup, Master},
        VrrpVersion,
    },
    vrrp::packet::AdvertPacket,
};

use crate::adverts;

const GROUP: [u8; 4] = [224, 0, 0, 18];
const NODE1: [u8; 4] = [10, 1, 15, 43];

fn key_file(directory: &Path, id: u8) -> String {
    let path = directory.join(format!("key{id}"));
    fs::write(&path, format!("hex:{}\n", format!("{id:02x}").repeat(32))).unwrap();
    let _ = std::process::Command::new("chmod")
        .arg("600")
        .arg(&path)
        .status()
        .unwrap();
    path.to_str().unwrap().to_owned()
}

/// The first key stands in the configuration, others in files.
fn config(lab: &Lab, priority: u8, version: u8, keys: &[u8], active: u8, mode: &str) -> String {
    let interval = if version == 3 { "200ms" } else { "1s" };
    let keys: String = keys
        .iter()
        .map(|id| {
            let value = match id {
                1 => format!("value = \"hex:{}\"", "01".repeat(32)),
                _ => format!("file = \"{}\"", key_file(lab.directory(), *id)),
            };
            format!("[[vrrp.auth_hmac.key]]\nid = {id}\n{value}\n")
        })
        .collect();
    format!(
        "[[vrrp]]\nname = \"VI_1\"\ninterface = \"{INTERFACE}\"\nversion = {version}\n\
         virtual_router_id = 20\npriority = {priority}\nadvert_interval = \"{interval}\"\n\
         addresses = [\"10.1.15.50/16\"]\n[vrrp.auth_hmac]\nactive_key = {active}\nmode = \"{mode}\"\n\
         time_window = \"2s\"\n{keys}"
    )
}

/// A good advert but for what `change` makes of it, from the third host, of a higher priority.
fn forged(secret: u8, mode: HmacMode) -> Vec<u8> {
    let instance = adverts::instance(|instance| {
        instance.version = VrrpVersion::V3;
        instance.group = GROUP.into();
        instance.advert_interval = Duration::from_millis(200);
        instance.auth = Auth::Hmac(HmacAuth {
            keys: vec![HmacKey {
                id: 1,
                secret: Secret::new(vec![secret; 32]),
                file: None,
            }],
            active: 1,
            window: None,
            mode,
        });
    });
    let mut packet = AdvertPacket::new(&instance, [10, 1, 15, 1].into());
    let now = std::time::SystemTime::now();
    let wall = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    packet.next(250, wall);
    packet.to(GROUP.into(), ChecksumForm::Message).to_vec()
}

/// The last advert of node1, from the IP header on.
fn captured(frames: &[Frame]) -> Vec<u8> {
    let is_one = |frame: &[u8]| {
        frame.len() > 42 && frame[12..14] == [8, 0] && frame[23] == 112 && frame[26..30] == NODE1
    };
    let (_, frame) = frames.iter().rfind(|(_, frame)| is_one(frame)).unwrap();
    let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    frame[14..14 + length].to_vec()
}

fn rejected(lbd: &Director, reason: &str) -> u64 {
    let status = lbd.status().unwrap();
    let all = status.instances[0].rejected.iter();
    all.filter(|(label, _)| label == reason)
        .map(|(_, count)| *count)
        .sum()
}

fn wait_for_rejection(lbd: &Director, reason: &str) {
    let what = format!("{} counts {reason}", lbd.node.name);
    wait::until_true(&what, Duration::from_secs(5), || {
        Ok(rejected(lbd, reason) > 0)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", lbd.status().unwrap().instances[0].rejected));
}

fn lab() -> (Lab, Node, Node, Node) {
    let lab = Lab::new().unwrap();
    let node1 = lab.node("node1", NODE1).unwrap();
    let node2 = lab.node("node2", [10, 1, 15, 44]).unwrap();
    let forger = lab.node("forger", [10, 1, 15, 1]).unwrap();
    (lab, node1, node2, forger)
}

#[test]
fn only_fresh_adverts_of_holders_of_a_key_are_believed() {
    let (lab, node1, node2, forger) = lab();
    let mut lbd1 = Director::new(&lab, &node1, &config(&lab, 100, 3, &[1], 1, "enforce")).unwrap();
    let mut lbd2 = Director::new(&lab, &node2, &config(&lab, 90, 3, &[1], 1, "enforce")).unwrap();
    lbd1.start(&lab).unwrap();
    lbd1.wait_for("VI_1", Master).unwrap();
    lbd2.start(&lab).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let since = |lbd: &Director| lbd.status().unwrap().instances[0].since;
    assert_eq!(lbd2.state("VI_1").unwrap(), Backup);
    let before = [since(&lbd1), since(&lbd2)];

    let sniffer = Sniffer::start(&forger).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let old = captured(&sniffer.stop().unwrap());
    let send = |packet: Vec<u8>| {
        forger
            .within(move || adverts::send_to(&packet, GROUP.into()))
            .unwrap();
    };
    send(old.clone());
    wait_for_rejection(&lbd2, "replayed");
    std::thread::sleep(Duration::from_secs(4));
    send(old);
    wait_for_rejection(&lbd2, "stale");
    send(forged(7, HmacMode::Enforce));
    send(forged(1, HmacMode::ReceiveOnly));
    for lbd in [&lbd1, &lbd2] {
        wait_for_rejection(lbd, "wrong_hmac");
        wait_for_rejection(lbd, "unsigned");
    }
    assert_eq!([since(&lbd1), since(&lbd2)], before, "nobody changed");

    // A director that starts again is believed at once: its clock went on.
    let replayed = rejected(&lbd2, "replayed");
    lbd1.stop().unwrap();
    lbd2.wait_for("VI_1", Master).unwrap();
    lbd1.start(&lab).unwrap();
    lbd1.wait_for("VI_1", Master).unwrap();
    lbd2.wait_for("VI_1", Backup).unwrap();
    assert_eq!(rejected(&lbd2, "replayed"), replayed);

    // And one with the right key is believed: the test would notice a deaf pair.
    send(forged(1, HmacMode::Enforce));
    lbd1.wait_for("VI_1", Backup).unwrap();
    lbd1.stop().unwrap();
    lbd2.stop().unwrap();
}

/// From no trailer to one, then to another key, with a reload of each director at each step.
#[test]
fn a_running_pair_changes_its_key() {
    for version in [2, 3] {
        let (lab, node1, node2, _) = lab();
        let plain = |priority| {
            let text = config(&lab, priority, version, &[1], 1, "enforce");
            text[..text.find("[vrrp.auth_hmac]").unwrap()].to_owned()
        };
        let mut lbd1 = Director::new(&lab, &node1, &plain(100)).unwrap();
        let mut lbd2 = Director::new(&lab, &node2, &plain(90)).unwrap();
        lbd1.start(&lab).unwrap();
        lbd1.wait_for("VI_1", Master).unwrap();
        lbd2.start(&lab).unwrap();
        lbd2.wait_for("VI_1", Backup).unwrap();
        let since = |lbd: &Director| lbd.status().unwrap().instances[0].since;
        let before = [since(&lbd1), since(&lbd2)];
        let steps: [(&[u8], u8, &str); 6] = [
            (&[1], 1, "receive-only"),
            (&[1], 1, "permissive"),
            (&[1], 1, "enforce"),
            (&[1, 2], 1, "enforce"),
            (&[1, 2], 2, "enforce"),
            (&[2], 2, "enforce"),
        ];
        for (keys, active, mode) in steps {
            for (lbd, priority) in [(&lbd1, 100), (&lbd2, 90)] {
                lbd.configure(&config(&lab, priority, version, keys, active, mode))
                    .unwrap();
                lbd.ctl(&["reload"]).unwrap();
                let received = lbd2.status().unwrap().instances[0].received;
                wait::until_true("adverts are heard", Duration::from_secs(3), || {
                    Ok(lbd2.status()?.instances[0].received > received)
                })
                .unwrap_or_else(|error| panic!("{keys:?} {active} {mode}: {error}"));
            }
        }
        assert_eq!([since(&lbd1), since(&lbd2)], before, "nobody changed");
        for lbd in [&lbd1, &lbd2] {
            let instance = &lbd.status().unwrap().instances[0];
            assert!(instance.rejected.is_empty(), "{:?}", instance.rejected);
            assert!(!lbd.log().contains("passwords guard"), "no weak password");
        }
        lbd1.stop().unwrap();
        lbd2.stop().unwrap();
    }
}
