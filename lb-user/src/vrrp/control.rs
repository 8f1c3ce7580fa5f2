//! Sends IPv6 messages with a source address and a hop limit of their own (RFC 3542 sections 6.1 and 6.2)
//! without allocating, which nix does.

use std::{
    io::{self, IoSlice},
    mem::size_of,
    net::{Ipv6Addr, SocketAddrV6},
};

use socket2::{MsgHdr, Socket};

/// `cmsghdr`: length with this header, level, type.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<libc::c_int>();
/// `in6_pktinfo`: the source address and the index of the interface.
const SOURCE: usize = 20;
const LIMIT: usize = size_of::<libc::c_int>();
const LENGTH: usize = HEADER + aligned(SOURCE) + HEADER + aligned(LIMIT);

/// What a control message is filled up to.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// Both control messages as the kernel reads them.
fn control(source: Ipv6Addr, ifindex: u32, hop_limit: u8) -> [u8; LENGTH] {
    let mut all = [0; LENGTH];
    let (first, second) = all.split_at_mut(HEADER + aligned(SOURCE));
    write_header(first, libc::IPV6_PKTINFO, SOURCE);
    first[HEADER..][..16].copy_from_slice(&source.octets());
    first[HEADER + 16..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    write_header(second, libc::IPV6_HOPLIMIT, LIMIT);
    second[HEADER..][..LIMIT].copy_from_slice(&libc::c_int::from(hop_limit).to_ne_bytes());
    all
}

fn write_header(message: &mut [u8], kind: libc::c_int, length: usize) {
    const WORD: usize = size_of::<usize>();
    message[..WORD].copy_from_slice(&(HEADER + length).to_ne_bytes());
    message[WORD..][..4].copy_from_slice(&libc::IPPROTO_IPV6.to_ne_bytes());
    message[WORD + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
}

/// Sends a message on the interface that the destination names.
pub fn send(
    socket: &Socket,
    message: &[u8],
    source: Ipv6Addr,
    to: SocketAddrV6,
    hop_limit: u8,
) -> io::Result<()> {
    let control = control(source, to.scope_id(), hop_limit);
    let (to, parts) = (to.into(), [IoSlice::new(message)]);
    let message = MsgHdr::new()
        .with_addr(&to)
        .with_buffers(&parts)
        .with_control(&control);
    socket.sendmsg(&message, 0).map(|_| ())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{
        ControlMessage, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
    };

    use super::*;

    /// nix builds the same messages: what the kernel tells a receiver of both is the same.
    #[test]
    fn the_kernel_reads_it_as_what_nix_sends() {
        use std::os::fd::AsRawFd;
        let receiver = std::net::UdpSocket::bind("[::1]:0").unwrap();
        setsockopt(&receiver, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
        setsockopt(&receiver, sockopt::Ipv6RecvHopLimit, &true).unwrap();
        let std::net::SocketAddr::V6(to) = receiver.local_addr().unwrap() else {
            panic!("not IPv6");
        };
        let sender = Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
        send(&sender, b"advert", Ipv6Addr::LOCALHOST, to, 37).unwrap();
        let source = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: Ipv6Addr::LOCALHOST.octets(),
            },
            ipi6_ifindex: 0,
        };
        sendmsg(
            sender.as_raw_fd(),
            &[IoSlice::new(b"advert")],
            &[
                ControlMessage::Ipv6PacketInfo(&source),
                ControlMessage::Ipv6HopLimit(&37),
            ],
            MsgFlags::empty(),
            Some(&SockaddrIn6::from(to)),
        )
        .unwrap();
        let heard = || {
            let mut buffer = [0; 16];
            let mut parts = [io::IoSliceMut::new(&mut buffer)];
            let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
            let got = recvmsg::<SockaddrIn6>(
                receiver.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            )
            .unwrap();
            let told: Vec<String> = got.cmsgs().unwrap().map(|m| format!("{m:?}")).collect();
            let (bytes, source) = (got.bytes, got.address);
            (buffer[..bytes].to_vec(), source, told)
        };
        let (ours, theirs) = (heard(), heard());
        assert_eq!(ours, theirs);
        assert!(format!("{ours:?}").contains("37"), "{ours:?}");
    }
}
