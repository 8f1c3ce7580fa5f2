//! Sending messages to sync daemons: to one of this host's kernel, no faster than it reads them, and to those
//! of other directors, which nobody can ask.
//!
//! A message to this host may be on its way for long where the host is busy: ksoftirqd brings it, even over the
//! loopback interface, and until then it waits in no socket's queue. So we listen to the group as well. Of sockets
//! that get a copy the newest is the last one (`__udp4_lib_mcast_deliver`): when ours has it, the kernel's has it too.

use std::{
    fs, io,
    mem::{self, MaybeUninit},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, InterfaceIndexOrAddress, SockAddr, Socket, Type};

use super::codec::SyncDaemon;

/// IP_VS_SYNC_GROUP and IP_VS_SYNC_PORT.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
const PORT: u16 = 8848;
/// Messages that may wait: of the longest, a third of the receive buffer that a socket has unless somebody
/// made it smaller (212,992 bytes, of which a message takes twice its length).
const WAITING: usize = 4;
/// The kernel reads messages of 255 connections within a millisecond each.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_micros(200);
/// Messages that other directors get at once, and the pause behind them: a third of the same receive buffer, in which
/// one as long as a frame takes 2,304 bytes.
const AT_ONCE: usize = 30;
const BREATH: Duration = Duration::from_millis(1);
/// Messages of others that are passed over at once: more than a socket's receive buffer has room for.
const PASSED_OVER: usize = 1_000;
/// Sockets of the network namespace of the thread that asks.
const SOCKETS: &str = "/proc/thread-self/net/udp";

/// What became of connections that the kernel was told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// How many it was told.
    pub connections: usize,
    /// Why it may not know all of them.
    pub trouble: Option<String>,
}

/// Sends messages to a daemon that listens on this host. What goes wrong is returned; the rest has arrived.
pub fn all(daemon: &SyncDaemon, messages: impl Iterator<Item = Vec<u8>>) -> Option<String> {
    send(daemon, messages)
        .err()
        .map(|error| format!("the kernel could not be told of all connections: {error}"))
}

/// Sends messages to the other directors that `daemon` speaks to. Whether they arrive is not known.
pub fn others(daemon: &SyncDaemon, mut messages: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let port = daemon.port.unwrap_or(PORT);
    let to = match daemon.group.unwrap_or(GROUP.into()) {
        IpAddr::V4(group) => SocketAddr::from((group, port)),
        IpAddr::V6(group) => {
            let interface = if_nametoindex(daemon.interface.as_str())?;
            SocketAddrV6::new(group, port, 0, interface).into()
        }
    };
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    socket.bind_device(Some(daemon.interface.as_bytes()))?;
    // As the kernel's own daemons: not farther than the network, unless somebody says otherwise.
    let ttl = daemon.ttl.map_or(1, u32::from);
    match to.is_ipv6() {
        true => socket.set_multicast_hops_v6(ttl)?,
        false => socket.set_multicast_ttl_v4(ttl)?,
    }
    // A full queue of the interface would hold up whoever waits for the end.
    socket.set_write_timeout(Some(PATIENCE))?;
    loop {
        let batch = some(&mut messages, AT_ONCE);
        if batch.is_empty() {
            return Ok(());
        }
        for message in &batch {
            socket.send_to(message, &SockAddr::from(to))?;
        }
        thread::sleep(BREATH);
    }
}

fn some(messages: &mut impl Iterator<Item = Vec<u8>>, most: usize) -> Vec<Vec<u8>> {
    messages.take(most).collect()
}

fn send(daemon: &SyncDaemon, mut messages: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let group = match daemon.group {
        None => GROUP,
        Some(IpAddr::V4(group)) => group,
        Some(IpAddr::V6(_)) => {
            return Err(io::Error::other(
                "a sync daemon of somebody else listens to an IPv6 group",
            ));
        }
    };
    let to = SocketAddrV4::new(group, daemon.port.unwrap_or(PORT));
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind_device(Some(daemon.interface.as_bytes()))?;
    // What is for this host's kernel does not leave the host.
    socket.set_multicast_ttl_v4(0)?;
    socket.set_multicast_loop_v4(true)?;
    let before = look(to)?;
    // Without it the daemon is told all the same, and nobody knows what has arrived.
    let witness = Witness::listen(to, &daemon.interface);
    let mut arrived = Ok(());
    let mut count = 0;
    let mut next = some(&mut messages, WAITING);
    while !next.is_empty() {
        for message in &next {
            socket.send_to(message, &SockAddr::from(to))?;
        }
        count += next.len();
        // While the kernel reads these, more are made.
        let batch = mem::replace(&mut next, some(&mut messages, WAITING));
        // What misses one is not waited for again: the rest may arrive all the same.
        for message in &batch {
            if let (Ok(witness), Ok(())) = (&witness, &arrived) {
                arrived = witness.hear(message);
            }
        }
        wait_until_read(to, witness.as_ref().ok())?;
    }
    // What it missed is nobody's loss.
    let arrived = witness.map(drop).and(arrived);
    let lost = look(to)?.dropped.wrapping_sub(before.dropped);
    match lost {
        0 => arrived,
        lost => Err(io::Error::other(format!(
            "{lost} of {count} messages found no room"
        ))),
    }
}

/// A socket that gets what a sync daemon gets, after it.
struct Witness(UdpSocket);

impl Witness {
    /// Comes after the daemon's socket was made.
    fn listen(at: SocketAddrV4, interface: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // As the kernel's has it.
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.bind(&SockAddr::from(at))?;
        let index = if_nametoindex(interface)?;
        socket.join_multicast_v4_n(at.ip(), &InterfaceIndexOrAddress::Index(index))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket.into()))
    }

    /// Returns when `message` has come. What others say is passed over.
    fn hear(&self, message: &[u8]) -> io::Result<()> {
        let mut heard = vec![0; message.len() + 1];
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let length = match self.0.recv(&mut heard) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                other => other?,
            };
            if heard[..length] == *message {
                return Ok(());
            }
        }
        Err(io::Error::other("a message did not arrive"))
    }

    /// What others said since. Some may go on speaking: there is an end to it.
    fn pass_over(&self) {
        let socket = socket2::SockRef::from(&self.0);
        let mut nothing = [MaybeUninit::uninit(); 1];
        for _ in 0..PASSED_OVER {
            if socket
                .recv_with_flags(&mut nothing, libc::MSG_DONTWAIT)
                .is_err()
            {
                break;
            }
        }
    }
}

fn wait_until_read(at: SocketAddrV4, witness: Option<&Witness>) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        // Its queue is one of those that are looked at.
        if let Some(witness) = witness {
            witness.pass_over();
        }
        if look(at)?.waiting == 0 {
            break;
        }
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other("its sync daemon does not read them"));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// The receive queues of the sockets bound to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Queues {
    /// Bytes that wait.
    waiting: u64,
    /// Messages dropped since.
    dropped: u64,
    sockets: usize,
}

fn look(at: SocketAddrV4) -> io::Result<Queues> {
    let queues = queues(&fs::read_to_string(SOCKETS)?, at);
    match queues.sockets {
        0 => Err(io::Error::other(format!("nobody listens on {at}"))),
        _ => Ok(queues),
    }
}

/// " 4710: 510000E0:2290 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 18063 2 0000 0".
fn queues(table: &str, at: SocketAddrV4) -> Queues {
    // The address as the kernel has it in memory, printed as a number.
    let address = u32::from_ne_bytes(at.ip().octets());
    let name = format!("{address:08X}:{:04X}", at.port());
    let mut found = Queues::default();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(1) != Some(&name.as_str()) {
            continue;
        }
        let waiting = words.get(4).and_then(|word| word.split_once(':'));
        let waiting = waiting.and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
        found.waiting += waiting.unwrap_or(0);
        found.dropped += words.last().and_then(|w| w.parse().ok()).unwrap_or(0);
        found.sockets += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::dataplane::ipvs::codec::SyncState;

    /// Longer than any message.
    const LENGTH: usize = 16_000;

    #[test]
    fn queues_are_read() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 4710: 510000E0:2290 00000000:0000 07 00000000:00002400 00:00000000 00000000     0        0 18063 2 0000000000000000 3
 4710: 510000E0:2290 00000000:0000 07 00000000:00000100 00:00000000 00000000     0        0 18064 2 0000000000000000 1
  999: 00000000:2290 00000000:0000 07 00000000:00000001 00:00000000 00000000     0        0 18065 2 0000000000000000 9
";
        let seen = queues(table, SocketAddrV4::new(GROUP, PORT));
        let expected = Queues {
            waiting: 0x2500,
            dropped: 4,
            sockets: 2,
        };
        assert_eq!(seen, expected);
        let other = SocketAddrV4::new(GROUP, 8849);
        assert_eq!(queues(table, other).sockets, 0);
    }

    /// What listens like the kernel's daemon has everything, in order, when we have done.
    #[test]
    fn a_daemon_hears_everything() {
        let daemon = SyncDaemon {
            interface: "lo".to_owned(),
            port: Some(38_848),
            ..SyncDaemon::bare(SyncState::Backup)
        };
        let messages: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 9_000 + usize::from(n)]).collect();
        assert!(
            all(&daemon, messages.iter().cloned())
                .is_some_and(|trouble| trouble.contains("nobody listens")),
            "our own ear is nobody's daemon"
        );
        let at = SocketAddrV4::new(GROUP, 38_848);
        // It is made like ours.
        let Witness(ear) = Witness::listen(at, "lo").unwrap();
        let reader = thread::spawn(move || {
            let mut heard = Vec::new();
            let mut message = vec![0; LENGTH];
            while let Ok(length) = ear.recv(&mut message) {
                heard.push(message[..length].to_vec());
                if heard.len() == 50 {
                    break;
                }
            }
            (ear, heard)
        });
        assert_eq!(all(&daemon, messages.iter().cloned()), None);
        let (ear, heard) = reader.join().unwrap();
        assert_eq!(heard, messages);
        drop(ear);

        let deaf = Witness::listen(at, "lo").unwrap();
        let trouble = all(&daemon, messages.iter().cloned()).unwrap();
        assert!(trouble.contains("does not read"), "{trouble}");
        drop(deaf);
    }

    /// A message that is on its way is waited for, and one that never comes is missed.
    #[test]
    fn what_does_not_arrive_is_missed() {
        let at = SocketAddrV4::new(GROUP, 38_849);
        let witness = Witness::listen(at, "lo").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ear = SocketAddrV4::new(GROUP, 38_849);
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            let socket = socket2::SockRef::from(&sender);
            socket.bind_device(Some(b"lo")).unwrap();
            sender.send_to(b"of somebody else", ear).unwrap();
            sender.send_to(b"ours", ear).unwrap();
        });
        witness.hear(b"ours").unwrap();
        late.join().unwrap();
        assert!(witness.hear(b"ours").is_err());
    }

    /// A socket of this host is found in the kernel's list, with what waits in it.
    #[test]
    fn the_kernels_list_has_a_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(at) = socket.local_addr().unwrap() else {
            panic!("no IPv4");
        };
        assert_eq!(look(at).unwrap().waiting, 0);
        socket.send_to(&[7; 100], at).unwrap();
        assert!(look(at).unwrap().waiting >= 100);
        drop(socket);
        assert!(look(at).is_err());
    }

    /// Where we cannot listen beside the daemon, it is told all the same, and that nobody knows whether it heard.
    #[test]
    fn a_daemon_is_told_where_nobody_can_listen() {
        let daemon = SyncDaemon {
            interface: "lo".to_owned(),
            port: Some(38_850),
            ..SyncDaemon::bare(SyncState::Backup)
        };
        // It shares its address with nobody.
        let ear = UdpSocket::bind((GROUP, 38_850)).unwrap();
        let index = if_nametoindex("lo").unwrap();
        socket2::SockRef::from(&ear)
            .join_multicast_v4_n(&GROUP, &InterfaceIndexOrAddress::Index(index))
            .unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let reader = thread::spawn(move || {
            let mut message = [0; 100];
            ear.recv(&mut message).map(|length| (ear, length))
        });
        let trouble = all(&daemon, iter::once(vec![7; 20])).unwrap();
        assert!(trouble.contains("in use"), "{trouble}");
        assert_eq!(reader.join().unwrap().unwrap().1, 20);
    }

    #[test]
    fn other_directors_get_every_message() {
        let group = Ipv4Addr::new(239, 255, 77, 77);
        let socket = std::net::UdpSocket::bind((group, 0)).unwrap();
        socket
            .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let daemon = SyncDaemon {
            interface: "lo".to_owned(),
            group: Some(group.into()),
            port: Some(socket.local_addr().unwrap().port()),
            ..SyncDaemon::bare(SyncState::Master)
        };
        let messages: Vec<Vec<u8>> = (0..70).map(|number| vec![number; 20]).collect();
        others(&daemon, messages.iter().cloned()).unwrap();
        let mut bytes = [0; 100];
        for message in &messages {
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..length], *message);
        }
    }
}
