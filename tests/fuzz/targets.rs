//! Everything that reads bytes which others wrote, each as a function that takes any bytes and must not
//! panic; and what must hold of what it lets pass.
//!
//! Two programs use this file: the fuzzer (`cargo xtask fuzz`), guided by what the bytes reach, and
//! the test `decoders`, which runs the corpus and random changes of it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
    time::Duration,
};

use lb_common::{
    capture, checksum,
    flow::{FlowKey, FlowValue},
};
use lb_user::{
    api::proto::{Status, Steer, VrrpOrder},
    config,
    dataplane::ipvs::{codec, sync::Message},
    health::probe::{grpc, icmp::Echo},
    model::{ChecksumForm, Instance, ProcessPattern, Rest, VrrpState, VrrpVersion},
    net::{arp, firewall, interfaces::Interfaces, netlink},
    track::{
        file::{Content, FileState},
        proc_event,
        process::is_meant,
    },
    vrrp::{
        fsm::{Effect, Event, Machine, Settings},
        packet::{self, Advert, AdvertPacket},
    },
};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

/// A reader of bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: also the folder of its corpus.
    pub name: &'static str,
    /// Reads.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    Target {
        name: "advert",
        run: advert,
    },
    Target {
        name: "machine",
        run: machine,
    },
    Target {
        name: "netlink",
        run: netlink_message,
    },
    Target {
        name: "ipvs",
        run: ipvs,
    },
    Target {
        name: "sync",
        run: sync,
    },
    Target {
        name: "process",
        run: process,
    },
    Target {
        name: "configuration",
        run: configuration,
    },
    Target {
        name: "sources",
        run: sources,
    },
    Target {
        name: "request",
        run: request,
    },
    Target {
        name: "capture",
        run: captured,
    },
    Target {
        name: "flow",
        run: flow,
    },
    Target {
        name: "answer",
        run: answer,
    },
];

/// Repairs the checksum before the advert is read: otherwise hardly any change would get further.
const REPAIR: u8 = 0x80;
const V6_SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Adverts as raw sockets deliver them. The first byte chooses the instance (low bits) and whether the
/// checksum is repaired; with IPv6 the second one is the hop limit.
fn advert(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    let list = instances();
    let instance = &list[usize::from(choice & !REPAIR) % list.len()];
    let mut rest = rest.to_vec();
    let checked = if let IpAddr::V6(group) = instance.group {
        let Some((hop_limit, message)) = rest.split_first_mut() else {
            return;
        };
        if choice & REPAIR != 0 && message.len() >= 8 {
            let length = message.len() as u32;
            let both = [V6_SOURCE.octets(), group.octets()].concat();
            seal(message, checksum::sum(112 + length, &both));
        }
        packet::decode_v6(V6_SOURCE, group, *hop_limit, message).and_then(|r| r.check(instance))
    } else {
        let header = rest.first().map_or(0, |first| usize::from(first & 15) * 4);
        if choice & REPAIR != 0
            && let Some(message) = rest.get_mut(header..)
            && message.len() >= 8
        {
            seal(message, 0);
        }
        packet::decode(&rest).and_then(|r| r.check(instance))
    };
    if let Ok(advert) = checked {
        comes_back(instance, &advert);
    }
}

/// What is believed can be said again, and is understood as before.
fn comes_back(instance: &Instance, advert: &Advert) {
    let mut packet = AdvertPacket::new(instance, advert.source);
    packet.next(advert.priority, Duration::ZERO);
    let to = match instance.peers.is_empty() {
        true => instance.group,
        false => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)),
    };
    let bytes = packet.to(to, ChecksumForm::Auto);
    let received = match (advert.source, to) {
        (IpAddr::V6(source), IpAddr::V6(to)) => packet::decode_v6(source, to, 255, bytes),
        _ => packet::decode(bytes),
    };
    let again = received
        .and_then(|r| r.check(instance))
        .expect("our own advert");
    assert_eq!(
        (again.source, again.priority),
        (advert.source, advert.priority)
    );
    assert!(again.same_addresses);
    assert_eq!(again.interval, instance.advert_interval);
}

fn seal(message: &mut [u8], start: u32) {
    message[6..8].fill(0);
    let sum = checksum::finish(checksum::sum(start, message));
    message[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The key of the published examples.
const TRAILER: &str = "[vrrp.auth_hmac]\nactive_key = 1\nanti_replay = \"monotonic\"\n[[vrrp.auth_hmac.key]]\nid = 1\n\
     value = \"hex:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\"\n";

/// One instance of each kind that reads adverts in its own way, in the order of the corpus.
fn instances() -> &'static [Instance] {
    static INSTANCES: OnceLock<Vec<Instance>> = OnceLock::new();
    INSTANCES.get_or_init(|| {
        let signed_v4 = format!("addresses = [\"192.0.2.100\"]\nversion = 3\n{TRAILER}");
        let signed_v6 = format!("addresses = [\"fe80::100\"]\nversion = 3\n{TRAILER}");
        let kinds = [
            (11, "addresses = [\"198.51.100.11\"]"),
            (20, "addresses = [\"198.51.100.20\"]\npassword = \"secret12\""),
            (
                12,
                "addresses = [\"198.51.100.12\"]\npassword = \"secret12\"\nauthentication = \"ah\"",
            ),
            (14, "addresses = [\"198.51.100.14\"]\nversion = 3"),
            (16, "addresses = [\"fe80::16\", \"2001:db8::16\"]\nversion = 3"),
            (
                15,
                "addresses = [\"198.51.100.15\"]\nversion = 3\nunicast_peers = [\"192.0.2.1\"]\nunicast_min_ttl = 60",
            ),
            (51, signed_v4.as_str()),
            (52, signed_v6.as_str()),
        ];
        let instance = |(vrid, rest): &(u8, &str)| {
            format!(
                "[[vrrp]]\nname = \"VI_{vrid}\"\ninterface = \"eth0\"\nvirtual_router_id = {vrid}\n{rest}\n"
            )
        };
        let text: String = kinds.iter().map(instance).collect();
        match config::parse("kinds", &text, "host") {
            Ok(config) => config.instances,
            Err(error) => panic!("{error}"),
        }
    })
}

/// Any series of events at a machine. Four bytes of settings, then three for each event: what, when,
/// and a value.
fn machine(bytes: &[u8]) {
    let Some((&[priority, form, interval, delay], events)) = bytes.split_first_chunk() else {
        return;
    };
    let settings = Settings {
        version: if form & 1 == 0 {
            VrrpVersion::V2
        } else {
            VrrpVersion::V3
        },
        priority: priority.max(1),
        interval: Duration::from_millis(10) * (u32::from(interval) + 1),
        preempt: form & 2 == 0,
        preempt_delay: Duration::from_millis(50) * u32::from(delay),
        source: Ipv4Addr::new(10, 0, 0, 5).into(),
    };
    let mut machine = Machine::new(settings);
    let mut now = Duration::ZERO;
    for event in events.chunks_exact(3) {
        now += Duration::from_millis(event[1].into());
        let event = happening(event[0], event[2]);
        let before = machine.state();
        let effects: Vec<Effect> = machine.handle(event, now).into_iter().collect();
        let waits = matches!(machine.state(), VrrpState::Backup | VrrpState::Master);
        assert_eq!(machine.deadline().is_some(), waits, "{event:?} in {before}");
        let entered = effects.iter().find_map(|effect| match effect {
            Effect::Enter(state, _) => Some(*state),
            Effect::SendAdvert(_) | Effect::Announce => None,
        });
        // Every change of state is told.
        assert_eq!(
            entered.unwrap_or(before),
            machine.state(),
            "{event:?} in {before}"
        );
        if effects.contains(&Effect::Announce) {
            assert_eq!(machine.state(), VrrpState::Master);
        }
    }
}

fn happening(what: u8, value: u8) -> Event {
    use VrrpState::{Backup, Fault, Init, Master};
    match what % 12 {
        0 => Event::Start,
        1 => Event::Stop,
        2 | 3 => Event::Advert {
            priority: value,
            source: Ipv4Addr::new(10, 0, 0, what).into(),
            interval: Duration::from_millis(10) * (u32::from(what) + 1),
        },
        4 => Event::Timer,
        5 => Event::LinkDown,
        6 => Event::LinkUp,
        7 => Event::Yield,
        8 => Event::TrackDown,
        9 => Event::TrackUp,
        10 => Event::Overslept(Duration::from_millis(10) * value.into()),
        _ => match value % 5 {
            0 => Event::Hold,
            1 => Event::Follow(Init),
            2 => Event::Follow(Backup),
            3 => Event::Follow(Master),
            _ => Event::Follow(Fault),
        },
    }
}

/// Messages of the kernel's route netlink, one behind the other as in one read.
fn netlink_message(bytes: &[u8]) {
    let mut interfaces = Interfaces::default();
    let mut rest = bytes;
    while let Some(word) = rest.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*word) as usize;
        let Some(message) = rest.get(..length).filter(|_| length >= 16) else {
            return;
        };
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
            && let NetlinkPayload::InnerMessage(inner) = message.payload
            && let Some(event) = netlink::event(&inner)
        {
            interfaces.apply(&event);
            for ifindex in 0..4 {
                let _ = interfaces.carrier(ifindex);
            }
            let _ = interfaces.own_macs(&["eth0".to_owned()]);
        }
        // Messages begin at multiples of four.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// What the kernel's IPVS answers.
fn ipvs(bytes: &[u8]) {
    let _ = codec::answers(bytes);
}

/// IPVS's sync protocol: what is understood can be said again.
fn sync(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let again = Message::decode(&message.encode());
        assert_eq!(again.as_ref(), Ok(&message));
    }
}

/// The kernel's messages about processes; names and command lines, which every process chooses for
/// itself; the content of a tracked file.
fn process(bytes: &[u8]) {
    let _ = proc_event::decode(bytes);
    let mut file = FileState::default();
    file.found(&Content::Bytes(b"7".to_vec()), true);
    file.found(&Content::Bytes(bytes.to_vec()), true);
    assert!(file.complaint().is_none() || file.value() == 7);
    let (name, line) = bytes.split_at(bytes.len().min(15));
    let mut words: Vec<String> = Vec::new();
    if let Ok(text) = std::str::from_utf8(line) {
        let text = text.trim_end_matches('\0');
        words.extend(text.split('\0').map(str::to_owned));
    }
    for rest in [Rest::Nothing, Rest::Words, Rest::Letters] {
        let words = words.clone();
        let is_line = !line.iter().all(|byte| *byte == 0) && !words.is_empty();
        let pattern = ProcessPattern::CommandLine { words, rest };
        // A command line is its own pattern.
        assert!(is_meant(&pattern, name, line) || !is_line);
    }
    if let Ok(text) = std::str::from_utf8(name) {
        assert!(is_meant(&ProcessPattern::Name(text.to_owned()), name, line));
    }
}

/// A configuration file. What is wrong is told, whatever it is.
fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match config::parse("lbd.toml", &text, "host") {
        Ok(config) => {
            for instance in &config.instances {
                let source = match instance.group {
                    IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
                    IpAddr::V6(_) => IpAddr::V6(V6_SOURCE),
                };
                AdvertPacket::new(instance, source).next(instance.priority, Duration::ZERO);
            }
        }
        Err(error) => {
            let told = error.to_string();
            assert!(told.contains("lbd.toml"), "{told}");
        }
    }
}

/// A list of sources.
fn sources(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match config::sources::parse(&text) {
        Ok(prefixes) => {
            for prefix in prefixes {
                let written = format!("{}/{}", prefix.address, prefix.length);
                assert_eq!(config::sources::prefix(&written), Some(prefix), "{written}");
            }
        }
        Err(bad) => assert!(bad.number >= 1 && bad.number <= text.lines().count()),
    }
}

/// Requests and answers of the API.
fn request(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Steer>(bytes);
    let _ = serde_json::from_slice::<VrrpOrder>(bytes);
    if let Ok(status) = serde_json::from_slice::<Status>(bytes) {
        let written = serde_json::to_value(&status).expect("a status can be written");
        let again: Status = serde_json::from_value(written.clone()).expect("and read");
        let again = serde_json::to_value(&again).expect("and written again");
        assert_eq!(again, written);
    }
}

/// What the program tells of a captured packet.
fn captured(bytes: &[u8]) {
    let Some(head) = bytes.first_chunk::<{ capture::Event::LENGTH }>() else {
        return;
    };
    let event = capture::Event::from_bytes(head);
    let _ = capture::Filter::default().wants(&event);
    let _ = event.client.as_v4();
    assert_eq!(event, capture::Event::from_bytes(head));
}

/// A slot of a flow table.
fn flow(bytes: &[u8]) {
    let Some((key, rest)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let Some((value, rest)) = rest.split_first_chunk::<8>() else {
        return;
    };
    let now = rest
        .first_chunk::<4>()
        .map_or(0, |tick| u32::from_ne_bytes(*tick));
    let (key, value) = (
        FlowKey(u64::from_ne_bytes(*key)),
        FlowValue(u64::from_ne_bytes(*value)),
    );
    let again = FlowKey::new(key.client_be(), key.port_be(), key.service());
    assert_eq!(again, key);
    assert!(
        !(value.is_busy() && value.is_free(now)),
        "{value:?} at {now}"
    );
    let again = FlowValue::new(value.backend(), value.expires(), value.is_closing());
    assert_eq!(again.backend(), value.backend());
    assert_eq!(again.expires(), value.expires());
    assert_eq!(again.is_closing(), value.is_closing());
}

/// Answers of other hosts and of the kernel: ARP, echo, gRPC, nftables.
fn answer(bytes: &[u8]) {
    if let Some((address, mac)) = arp::answer(bytes) {
        assert_eq!(
            (&bytes[28..32], &bytes[22..28]),
            (&address.octets()[..], &mac[..])
        );
    }
    // The identifier is one that no program chose: of the frame itself.
    let identifier = bytes
        .get(4..6)
        .map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    for is_v4 in [true, false] {
        if Echo::new(identifier).is_reply(is_v4, bytes) {
            assert!(bytes.ends_with(b"lbd echo") || bytes.len() > 16);
        }
    }
    if grpc::status(bytes).is_some() {
        assert_eq!(bytes[0], 0, "a compressed frame is not understood");
    }
    let _ = firewall::first_error(bytes);
}
