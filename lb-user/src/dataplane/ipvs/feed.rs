//! Sending messages to sync daemons: to one of this host's kernel, no faster than it reads them, and to those
//! of other directors, which nobody can ask.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    thread,
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, SockAddr, Socket, Type};

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
pub fn all(daemon: &SyncDaemon, messages: &[Vec<u8>]) -> Option<String> {
    send(daemon, messages)
        .err()
        .map(|error| format!("the kernel could not be told of all connections: {error}"))
}

/// Sends messages to the other directors that `daemon` speaks to. Whether they arrive is not known.
pub fn others(daemon: &SyncDaemon, messages: &[Vec<u8>]) -> io::Result<()> {
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
    for batch in messages.chunks(AT_ONCE) {
        for message in batch {
            socket.send_to(message, &SockAddr::from(to))?;
        }
        thread::sleep(BREATH);
    }
    Ok(())
}

fn send(daemon: &SyncDaemon, messages: &[Vec<u8>]) -> io::Result<()> {
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
    for batch in messages.chunks(WAITING) {
        for message in batch {
            socket.send_to(message, &SockAddr::from(to))?;
        }
        wait_until_read(to)?;
    }
    let lost = look(to)?.dropped.wrapping_sub(before.dropped);
    match lost {
        0 => Ok(()),
        lost => Err(io::Error::other(format!(
            "{lost} of {} messages found no room",
            messages.len()
        ))),
    }
}

fn wait_until_read(at: SocketAddrV4) -> io::Result<()> {
    let begin = Instant::now();
    while look(at)?.waiting > 0 {
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
    use super::*;
    use crate::dataplane::ipvs::codec::SyncState;

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
        others(&daemon, &messages).unwrap();
        let mut bytes = [0; 100];
        for message in &messages {
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..length], *message);
        }
    }
}
