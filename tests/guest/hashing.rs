//! `sh` and `mh` choose as the kernel's IPVS does: ten thousand random clients, in XDP and in the
//! kernel, for weights, flags, and after a removal.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use lab::{Lab, Node, network::run};
use lb_user::{
    dataplane::{
        DataPlane,
        plan::{
            BackendState::{Draining, Up},
            Plan,
        },
        xdp::Xdp,
    },
    model::{Hashing, Protocol::Tcp, Scheduler},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::program::{
    INGRESS, SMALL, VIP, frame, in_namespace, load, resolve, server_if_any, service, transport,
};

/// One way to set a scheduler up.
struct Row {
    scheduler: Scheduler,
    /// Flags in ipvsadm's words, comma-separated.
    flags: &'static str,
    /// Weights of the real servers 10.0.0.1, 10.0.0.2, ...
    weights: &'static [u32],
    /// The server that is removed again, if any.
    removed: Option<u8>,
    /// The server whose weight becomes 0 afterwards, if any.
    drained: Option<u8>,
    /// How many clients are asked.
    clients: usize,
}

const fn row(
    scheduler: Scheduler,
    flags: &'static str,
    weights: &'static [u32],
    removed: Option<u8>,
    clients: usize,
) -> Row {
    Row {
        scheduler,
        flags,
        weights,
        removed,
        drained: None,
        clients,
    }
}

/// A set-up whose server `last` gets weight 0 after the others were added.
const fn drained(scheduler: Scheduler, flags: &'static str, last: u8) -> Row {
    let mut row = row(scheduler, flags, &[1, 3, 5, 2], None, 2_000);
    row.drained = Some(last);
    row
}

const ROWS: [Row; 13] = [
    row(Scheduler::Mh, "", &[1, 3, 5, 2, 1], None, 10_000),
    row(Scheduler::Sh, "", &[1, 3, 5, 2, 1], None, 10_000),
    row(Scheduler::Mh, "mh-port", &[1, 1, 1], None, 2_000),
    row(Scheduler::Sh, "sh-port", &[1, 1, 1], None, 2_000),
    row(Scheduler::Mh, "", &[1, 3, 5, 2], Some(2), 2_000),
    row(Scheduler::Sh, "", &[1, 3, 5, 2], Some(2), 2_000),
    row(Scheduler::Mh, "mh-fallback", &[2, 0, 1], None, 2_000),
    row(Scheduler::Sh, "sh-fallback", &[2, 0, 1], None, 2_000),
    row(
        Scheduler::Mh,
        "mh-fallback,mh-port",
        &[100, 1_000, 7],
        None,
        2_000,
    ),
    drained(Scheduler::Mh, "", 3),
    drained(Scheduler::Mh, "mh-fallback", 3),
    drained(Scheduler::Sh, "", 3),
    drained(Scheduler::Sh, "sh-fallback", 2),
];

type Client = (Ipv4Addr, u16);

/// How often those are asked for that the kernel's listing does not have.
const ROUNDS: u32 = 3;

/// Random clients outside the director's network, each once.
fn clients(seed: u64, count: usize) -> Vec<Client> {
    let mut seen = HashMap::new();
    for number in 0.. {
        // Steele and others, "Fast splittable pseudorandom number generators" (splitmix64).
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let address = 0x1400_0000 | (z as u32 & 0x03ff_ffff);
        let port = 1024 + (z >> 40) as u16 % 60_000;
        seen.insert((Ipv4Addr::from(address), port), ());
        if seen.len() == count {
            break;
        }
    }
    seen.into_keys().collect()
}

fn syn(client: Client, port: u16) -> Vec<u8> {
    frame(client.0, VIP, 64, transport(client.1, port, "S"), b"")
}

/// The kernel's choices: a SYN of each client to a director with IPVS, then its connection table.
fn kernel(row: &Row, port: u16, clients: &[Client]) -> HashMap<Client, u8> {
    let lab = Lab::new().unwrap();
    let director = lab.node("director", [10, 0, 0, 43]).unwrap();
    let source = lab.node("source", [10, 0, 9, 9]).unwrap();
    for interface in ["all", "default", "eno16777736"] {
        director
            .sysctl(&format!("ipv4.conf.{interface}.rp_filter"), "0")
            .unwrap();
    }
    director
        .ip(&["address", "add", &format!("{VIP}/32"), "dev", "lo"])
        .unwrap();
    let ipvsadm = |arguments: &[&str]| director.run("ipvsadm", arguments).unwrap();
    let vip = format!("{VIP}:{port}");
    let name = row.scheduler.to_string();
    let mut add = vec!["-A", "-t", &vip, "-s", &name];
    if !row.flags.is_empty() {
        add.extend(["-b", row.flags]);
    }
    ipvsadm(&add);
    for (last, weight) in (1..).zip(row.weights) {
        let server = format!("10.0.0.{last}:{port}");
        let weight = weight.to_string();
        ipvsadm(&["-a", "-t", &vip, "-r", &server, "-g", "-w", &weight]);
    }
    if let Some(last) = row.removed {
        ipvsadm(&["-d", "-t", &vip, "-r", &format!("10.0.0.{last}:{port}")]);
    }
    if let Some(last) = row.drained {
        let server = format!("10.0.0.{last}:{port}");
        ipvsadm(&["-e", "-t", &vip, "-r", &server, "-g", "-w", "0"]);
    }
    source
        .ip(&["route", "add", &format!("{VIP}/32"), "via", "10.0.0.43"])
        .unwrap();
    let mut chosen = HashMap::new();
    // On a busy machine a SYN may be lost on its way, and the kernel's listing skips what moves under it. Who is missing
    // gets another one: a hash knows no turn.
    for _ in 0..ROUNDS {
        let missing = clients
            .iter()
            .filter(|client| !chosen.contains_key(*client));
        let missing: Vec<Client> = missing.copied().collect();
        if missing.is_empty() {
            break;
        }
        open(&source, port, &missing);
        let table = director.run("cat", &["/proc/net/ip_vs_conn"]).unwrap();
        chosen.extend(table.lines().filter_map(connection));
    }
    chosen
}

/// Sends a SYN of each client.
fn open(source: &Node, port: u16, clients: &[Client]) {
    source
        .within(|| {
            // 255 is IPPROTO_RAW: the header is in the packet.
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
            let to = SocketAddr::from((VIP, 0)).into();
            for client in clients {
                raw.send_to(&syn(*client, port)[14..], &to).unwrap();
            }
        })
        .unwrap();
}

/// "TCP 14A0B0C0 1388 0A000064 0050 0A000001 0050 SYN_RECV 59": the client, and its server's last
/// byte.
fn connection(line: &str) -> Option<(Client, u8)> {
    let mut words = line.split_whitespace();
    let hexadecimal = |word: Option<&str>| u32::from_str_radix(word?, 16).ok();
    if words.next() != Some("TCP") {
        return None;
    }
    let address = hexadecimal(words.next())?;
    let port = hexadecimal(words.next())? as u16;
    let server = hexadecimal(words.nth(2))?;
    Some(((address.into(), port), server as u8))
}

/// The program's choices.
fn program(xdp: &mut Xdp, row: &Row, port: u16, clients: &[Client]) -> HashMap<Client, Option<u8>> {
    let servers: Vec<_> = (1..)
        .zip(row.weights)
        .filter(|(last, _)| Some(*last) != row.removed)
        .map(|(last, weight)| (last, *weight, if *weight == 0 { Draining } else { Up }))
        .collect();
    let mut planned = service(Tcp, port, 1, &servers);
    planned.scheduler = row.scheduler;
    planned.hashing = Hashing {
        port: row.flags.contains("-port"),
        fallback: row.flags.contains("-fallback"),
    };
    let mut plan = Plan::of(vec![planned]);
    xdp.apply(&plan).unwrap();
    xdp.set_role(1, true);
    for (last, _, _) in &servers {
        resolve(xdp, *last, INGRESS);
    }
    if let Some(last) = row.drained {
        let before = plan.clone();
        let place = servers.iter().position(|(server, _, _)| *server == last);
        plan.services[0].backends[place.unwrap()].state = Draining;
        plan.remember(&before);
        xdp.apply(&plan).unwrap();
    }
    let choice = |client: &Client| (*client, server_if_any(xdp, &syn(*client, port)));
    clients.iter().map(choice).collect()
}

#[test]
fn xdp_chooses_as_ipvs_does() {
    let _modules = crate::with_modules();
    for module in ["ip_vs", "ip_vs_mh", "ip_vs_sh"] {
        run(Command::new("modprobe").arg(module)).unwrap();
    }
    let seed = RandomState::new().hash_one(0);
    println!("seed {seed}");
    in_namespace(|_| {
        let mut xdp = load(SMALL);
        for (row, port) in ROWS.iter().zip(8000..) {
            let mut what = format!("{} {:?} {:?}", row.scheduler, row.flags, row.weights);
            if let Some(last) = row.drained {
                what += &format!(", {last} drained");
            }
            let clients = clients(seed ^ u64::from(port), row.clients);
            let theirs = kernel(row, port, &clients);
            // A table that another test's load made the kernel forget would prove little. Clients of a drained
            // server are refused.
            let refuses = row.drained.is_some() && !row.flags.contains("fallback");
            let answered = theirs.len();
            assert!(
                if refuses {
                    answered < clients.len() && answered > 0
                } else {
                    answered == clients.len()
                },
                "{what}: {answered} connections of the kernel"
            );
            let ours = program(&mut xdp, row, port, &clients);
            let different: Vec<_> = clients
                .iter()
                .filter(|client| ours[*client] != theirs.get(*client).copied())
                .collect();
            assert!(
                different.is_empty(),
                "{what}: {} of {} clients differ, such as {:?}: {:?} here, {:?} there",
                different.len(),
                clients.len(),
                different[0],
                ours[different[0]],
                theirs[different[0]]
            );
            let used: std::collections::BTreeSet<_> = theirs.values().collect();
            println!(
                "{what}: {} clients agree over servers {used:?}",
                clients.len()
            );
        }
    });
}
