//! Sends IPv6 messages with a source address and a hop limit of their own (RFC 3542 sections 6.1 and 6.2)
//! without allocating, which nix does.

use std::{
    io,
    mem::size_of,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

/// Both control messages as the kernel reads them, each aligned to eight bytes.
#[repr(C)]
struct Control {
    source_header: libc::cmsghdr,
    source: libc::in6_pktinfo,
    padding: [u8; 4],
    limit_header: libc::cmsghdr,
    limit: [libc::c_int; 2],
}

const SOURCE: u32 = size_of::<libc::in6_pktinfo>() as u32;
const LIMIT: u32 = size_of::<libc::c_int>() as u32;
// SAFETY: these only compute.
const _: () = unsafe {
    let space = libc::CMSG_SPACE(SOURCE) + libc::CMSG_SPACE(LIMIT);
    assert!(size_of::<Control>() == space as usize);
};

impl Control {
    fn new(source: Ipv6Addr, ifindex: u32, hop_limit: u8) -> Self {
        let header = |kind, length| libc::cmsghdr {
            // SAFETY: it only computes.
            cmsg_len: unsafe { libc::CMSG_LEN(length) } as usize,
            cmsg_level: libc::IPPROTO_IPV6,
            cmsg_type: kind,
        };
        Self {
            source_header: header(libc::IPV6_PKTINFO, SOURCE),
            source: libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: source.octets(),
                },
                ipi6_ifindex: ifindex,
            },
            padding: [0; 4],
            limit_header: header(libc::IPV6_HOPLIMIT, LIMIT),
            limit: [libc::c_int::from(hop_limit), 0],
        }
    }
}

/// Sends a message on the interface that the destination names.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    source: Ipv6Addr,
    to: SocketAddrV6,
    hop_limit: u8,
) -> io::Result<()> {
    let mut control = Control::new(source, to.scope_id(), hop_limit);
    let mut name = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr {
            s6_addr: to.ip().octets(),
        },
        sin6_scope_id: to.scope_id(),
    };
    let mut part = libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    // SAFETY: any zeroed value of it is valid.
    let mut all: libc::msghdr = unsafe { std::mem::zeroed() };
    all.msg_name = (&raw mut name).cast();
    all.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    all.msg_iov = &raw mut part;
    all.msg_iovlen = 1;
    all.msg_control = (&raw mut control).cast();
    all.msg_controllen = size_of::<Control>();
    // SAFETY: everything that the header points to lives until the call returns, and the kernel writes to
    // none of it.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const all, 0) } {
        sent if sent >= 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
