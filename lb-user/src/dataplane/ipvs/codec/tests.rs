//! Against what the real ipvsadm and a kernel said to each other, and against anything else.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const RECORDED: &str = include_str!("recorded.txt");

/// IPVS's number in the recorded kernel.
const FAMILY: u16 = 0x20;

/// What was said after a command line: whether it was sent, and the bytes.
fn recorded(command: &str) -> Vec<(bool, Vec<u8>)> {
    let line = format!("$ ipvsadm {command}");
    let rest = RECORDED.lines().skip_while(|text| *text != line).skip(1);
    let list: Vec<_> = rest
        .take_while(|text| !text.starts_with('$'))
        .filter_map(message)
        .collect();
    assert!(!list.is_empty(), "{command} is not in the recording");
    list
}

fn message(line: &str) -> Option<(bool, Vec<u8>)> {
    let (sign, hexadecimal) = line.split_once(' ')?;
    let byte = |at: usize| u8::from_str_radix(&hexadecimal[at..at + 2], 16).unwrap();
    let bytes = || (0..hexadecimal.len()).step_by(2).map(byte).collect();
    match sign {
        ">" => Some((true, bytes())),
        "<" => Some((false, bytes())),
        _ => None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn web() -> Key {
    Key::Address(6, ip("10.1.15.50"), 80)
}

fn service(key: Key, scheduler: &str) -> Service {
    Service {
        scheduler: scheduler.to_owned(),
        ..Service::bare(key)
    }
}

fn server(address: &str, port: u16, forward: Forward, weight: u32) -> Destination {
    Destination {
        address: ip(address),
        port,
        forward,
        wrapping: Wrapping::default(),
        weight,
        upper: 0,
        lower: 0,
    }
}

fn daemon(state: SyncState, interface: &str, id: u32) -> SyncDaemon {
    SyncDaemon {
        interface: interface.to_owned(),
        id,
        ..SyncDaemon::bare(state)
    }
}

/// What a command line makes ipvsadm say last before it ends, and the same in our words.
fn rows() -> Vec<(&'static str, Command)> {
    use Command::*;
    use Forward::*;
    let v6 = Key::Address(6, ip("2001:db8::50"), 443);
    let mark = Key::Mark { mark: 7, v6: false };
    let dns = Key::Address(17, ip("10.1.15.50"), 53);
    vec![
        (
            "-A -t 10.1.15.50:80 -s wrr",
            NewService(service(web(), "wrr")),
        ),
        (
            "-a -t 10.1.15.50:80 -r 10.1.15.45:80 -g -w 3",
            NewDestination(web(), server("10.1.15.45", 80, Route, 3)),
        ),
        (
            "-a -t 10.1.15.50:80 -r 10.1.15.46:80 -i -w 1",
            NewDestination(web(), server("10.1.15.46", 80, Tunnel, 1)),
        ),
        (
            "-a -t 10.1.15.50:80 -r 10.1.15.47:8080 -m -w 0 -x 100 -y 50",
            NewDestination(
                web(),
                Destination {
                    upper: 100,
                    lower: 50,
                    ..server("10.1.15.47", 8080, Masquerade, 0)
                },
            ),
        ),
        (
            "-a -t 10.1.15.50:80 -r [2001:db8::48]:80 -i -w 1",
            NewDestination(web(), server("2001:db8::48", 80, Tunnel, 1)),
        ),
        (
            "-A -u 10.1.15.50:53 -s rr -p 300 -M 255.255.255.0 -o",
            NewService(Service {
                flags: flags::PERSISTENT | flags::ONE_PACKET,
                timeout_s: 300,
                netmask: 0xffff_ff00,
                ..service(dns, "rr")
            }),
        ),
        (
            "-A --sctp-service 10.1.15.50:9000 -s sh -b sh-port,sh-fallback",
            NewService(Service {
                flags: flags::PORT | flags::FALLBACK,
                ..service(Key::Address(132, ip("10.1.15.50"), 9000), "sh")
            }),
        ),
        ("-A -f 7 -s lc", NewService(service(mark, "lc"))),
        (
            "-A -f 8 -6 -s wlc",
            NewService(service(Key::Mark { mark: 8, v6: true }, "wlc")),
        ),
        (
            "-A -t [2001:db8::50]:443 -s mh -b mh-port,mh-fallback -p 360 -M 64",
            NewService(Service {
                flags: flags::PORT | flags::FALLBACK | flags::PERSISTENT,
                timeout_s: 360,
                netmask: 64,
                ..service(v6, "mh")
            }),
        ),
        (
            "-a -t [2001:db8::50]:443 -r [2001:db8::45]:443 -g",
            NewDestination(v6, server("2001:db8::45", 443, Route, 1)),
        ),
        (
            "-a -f 7 -r 10.1.15.45:0 -g",
            NewDestination(mark, server("10.1.15.45", 0, Route, 1)),
        ),
        (
            "-e -t 10.1.15.50:80 -r 10.1.15.45:80 -g -w 5",
            SetDestination(web(), server("10.1.15.45", 80, Route, 5)),
        ),
        (
            "-E -t 10.1.15.50:80 -s rr",
            SetService(service(web(), "rr")),
        ),
        (
            "-d -t 10.1.15.50:80 -r 10.1.15.46:80",
            DeleteDestination(web(), server("10.1.15.46", 80, Route, 1)),
        ),
        ("-D -u 10.1.15.50:53", DeleteService(dns)),
        (
            "--set 900 120 300",
            SetTimeouts(super::Timeouts {
                tcp: 900,
                tcp_fin: 120,
                udp: 300,
            }),
        ),
        ("-L --timeout", Command::Timeouts),
        (
            "--start-daemon master --mcast-interface s0 --syncid 7",
            NewDaemon(daemon(SyncState::Master, "s0", 7)),
        ),
        (
            "--start-daemon backup --mcast-interface s0 --syncid 9 --sync-maxlen 1400 --mcast-group 224.0.0.82 --mcast-port 8850 --mcast-ttl 2",
            NewDaemon(SyncDaemon {
                length: Some(1400),
                group: Some(ip("224.0.0.82")),
                port: Some(8850),
                ttl: Some(2),
                ..daemon(SyncState::Backup, "s0", 9)
            }),
        ),
        ("-L --daemon", Daemons),
        ("--stop-daemon master", DeleteDaemon(SyncState::Master)),
        ("--stop-daemon backup", DeleteDaemon(SyncState::Backup)),
        ("-Z -t 10.1.15.50:80", Zero(Some(web()))),
        ("-Z", Zero(None)),
        ("-C", Flush),
    ]
}

#[test]
fn requests_are_those_of_ipvsadm() {
    for (line, command) in rows() {
        let (_, theirs) = recorded(line).into_iter().rfind(|(sent, _)| *sent).unwrap();
        let ours = command.encode(FAMILY, 0);
        // The sequence number, the sender's port, and whether an acknowledgement is wanted besides
        // the answer differ.
        let telling = |bytes: &[u8]| [&bytes[..6], &[bytes[7]], &bytes[16..]].concat();
        assert_eq!(telling(&ours), telling(&theirs), "{line}");
        if !command.ends_with_answer() {
            assert_eq!(ours[6], theirs[6], "{line}: flags");
        }
    }
    let (_, question) = &recorded("-A -t 10.1.15.50:80 -s wrr")[0];
    assert_eq!(Command::Info.encode(FAMILY, 0)[16..], question[16..]);
}

#[test]
fn a_listing_is_read() {
    let mut services = Vec::new();
    let mut servers = Vec::new();
    for (sent, bytes) in recorded("-Ln") {
        if sent {
            continue;
        }
        for (_, answer) in answers(&bytes).unwrap() {
            match answer {
                Answer::Service(entry) => services.push(entry),
                Answer::Destination(bytes) => servers.push(bytes),
                Answer::End => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let mut names: Vec<String> = services
        .iter()
        .map(|entry| format!("{} {}", entry.service.key, entry.service.scheduler))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "FWM 7 lc",
            "FWM 8 IPv6 wlc",
            "SCTP 10.1.15.50:9000 sh",
            "TCP 10.1.15.50:80 wrr",
            "TCP [2001:db8::50]:443 mh",
            "UDP 10.1.15.50:53 rr",
        ]
    );
    let of = |name: &str| {
        let named = |entry: &&ServiceEntry| entry.service.key.to_string() == name;
        services.iter().find(named).unwrap().service.clone()
    };
    let dns = of("UDP 10.1.15.50:53");
    assert_eq!((dns.timeout_s, dns.netmask), (300, 0xffff_ff00));
    let all = flags::PERSISTENT | flags::ONE_PACKET | flags::HASHED;
    assert_eq!(dns.flags, all);
    assert_eq!(of("TCP [2001:db8::50]:443").netmask, 64);
    let read = |bytes: &Vec<u8>| DestinationEntry::read(bytes, false).unwrap().destination;
    let servers: Vec<Destination> = servers.iter().map(read).collect();
    use Forward::{Masquerade, Route, Tunnel};
    // The kernel puts new ones in front.
    assert_eq!(
        servers,
        [
            server("2001:db8::48", 80, Tunnel, 1),
            Destination {
                upper: 100,
                lower: 50,
                ..server("10.1.15.47", 8080, Masquerade, 0)
            },
            server("10.1.15.46", 80, Tunnel, 1),
            server("10.1.15.45", 80, Route, 3),
            server("2001:db8::45", 443, Route, 1),
            server("10.1.15.45", 0, Route, 1),
        ]
    );
}

#[test]
fn short_answers_are_read() {
    let of = |line: &str| {
        let received = recorded(line).into_iter().rfind(|(sent, _)| !*sent);
        let list = answers(&received.unwrap().1).unwrap();
        list.into_iter()
            .map(|(_, answer)| answer)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("-A -t 10.1.15.50:80 -s wrr"), [Answer::Status(0)]);
    // ENOENT, EEXIST, ENOENT.
    for (line, code) in [
        ("-d -t 10.1.15.50:80 -r 10.1.15.99:80", -2),
        ("-A -t 10.1.15.50:80 -s rr", -17),
        ("-A -t 10.1.15.51:80 -s nonesuch", -2),
    ] {
        assert_eq!(of(line), [Answer::Status(code)], "{line}");
    }
    let timeouts = Timeouts {
        tcp: 900,
        tcp_fin: 120,
        udp: 300,
    };
    assert_eq!(of("-L --timeout"), [Answer::Timeouts(timeouts)]);
    let info = &recorded("-A -t 10.1.15.50:80 -s wrr")[1].1;
    let expected = Answer::Info {
        version: 0x01_02_01,
        table_size: 4096,
    };
    assert_eq!(answers(info).unwrap()[0].1, expected);
    let list = &recorded("-L --daemon")[1].1;
    let group = Some(ip("224.0.0.81"));
    let read = answers(list).unwrap();
    let master = SyncDaemon {
        length: Some(1472),
        group,
        port: Some(8848),
        ttl: Some(1),
        ..daemon(SyncState::Master, "s0", 7)
    };
    assert_eq!(read[0].1, Answer::Daemon(master));
    assert!(matches!(&read[1].1, Answer::Daemon(daemon) if daemon.ttl == Some(2)));
}

fn received() -> Vec<Vec<u8>> {
    let messages = RECORDED.lines().filter_map(message);
    messages
        .filter(|(sent, _)| !*sent)
        .map(|(_, bytes)| bytes)
        .collect()
}

/// Everything in an answer, down to the last attribute.
fn read_all(bytes: &[u8]) -> Result<usize, CodecError> {
    let list = answers(bytes)?;
    for (_, answer) in &list {
        if let Answer::Destination(bytes) = answer {
            DestinationEntry::read(bytes, false)?;
        }
    }
    Ok(list.len())
}

#[test]
fn messages_that_are_cut_off_are_errors_or_fewer() {
    for bytes in received() {
        let whole = read_all(&bytes).unwrap();
        for end in 0..bytes.len() {
            assert!(
                read_all(&bytes[..end]).map_or(true, |count| count < whole),
                "{end} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn attributes_of_later_kernels_are_passed_over() {
    let mut writer = Writer::default();
    writer.put_u32(999, 7);
    service(web(), "wrr").write(&mut writer);
    writer.nest(998, |inner| inner.put_text(1, "what"));
    let read = ServiceEntry::read(&writer.finish()).unwrap();
    assert_eq!(read.service, service(web(), "wrr"));
}

#[test]
fn what_means_nothing_is_an_error() {
    let read = |change: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::default();
        server("10.1.15.45", 80, Forward::Route, 1).write(&mut writer);
        change(&mut writer);
        DestinationEntry::read(&writer.finish(), false).map(|entry| entry.destination.port)
    };
    assert_eq!(read(&|_| {}), Ok(80));
    let value = |kind, value| Err(CodecError::Value { kind, value });
    // A way to forward that nobody has heard of is read, a number that no kernel has is not.
    assert_eq!(read(&|w| w.put_u32(3, 5)), Ok(80));
    assert_eq!(read(&|w| w.put_u32(3, 8)), value(3, 8));
    assert_eq!(read(&|w| w.put_u16(11, 1)), value(11, 1));
    assert_eq!(read(&|w| w.put_u16(4, 1)), Err(CodecError::Size(4)));
    assert_eq!(read(&|w| w.put_u16(1, 1)), Err(CodecError::Size(1)));
    let empty = DestinationEntry::read(&[], false);
    assert_eq!(empty.map(|_| ()), Err(CodecError::Missing(1)));
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

proptest! {
    #[test]
    fn services_come_back(
        key in prop_oneof![
            (any::<u8>(), address(), any::<u16>()).prop_map(|(protocol, ip, port)| Key::Address(protocol, ip, port)),
            (any::<u32>(), any::<bool>()).prop_map(|(mark, v6)| Key::Mark { mark, v6 }),
        ],
        scheduler in "[a-z]{0,15}", flags: u32, timeout_s: u32, netmask: u32, engine in prop::option::of("[a-z]{1,15}"),
    ) {
        let service = Service { key, scheduler, flags, timeout_s, netmask, engine };
        let mut writer = Writer::default();
        service.write(&mut writer);
        prop_assert_eq!(ServiceEntry::read(&writer.finish()).unwrap().service, service);
    }

    #[test]
    fn servers_come_back(
        address in address(), port: u16, forward in 0_usize..8, weight: u32, upper: u32, lower: u32, v6: bool,
        tunnel: (u8, u16, u16),
    ) {
        use Forward::*;
        let forward = [Masquerade, Local, Tunnel, Route, Bypass, Other(5), Other(6), Other(7)][forward];
        let (kind, tunnel_port, flags) = tunnel;
        let wrapping = Wrapping { kind, port: tunnel_port, flags };
        let server = Destination { address, port, forward, wrapping, weight, upper, lower };
        let mut writer = Writer::default();
        server.write(&mut writer);
        prop_assert_eq!(DestinationEntry::read(&writer.finish(), v6).unwrap().destination, server);
    }

    #[test]
    fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_all(&bytes);
    }

    /// Real answers with some bytes changed.
    #[test]
    fn damaged_answers_can_be_read(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = received().swap_remove(which.index(received().len()));
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = read_all(&bytes);
    }
}
