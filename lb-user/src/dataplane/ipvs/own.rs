//! Which addresses are this host's, for the network namespace of the thread that asks.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
};

use nix::ifaddrs::getifaddrs;

/// Whether an address is this host's: only then can a socket have it. Where the administrator lets sockets have
/// any address (ip_nonlocal_bind, as proxies want it beside VRRP), the interfaces are asked. Local routes
/// that are no address of an interface do not count then.
pub fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok() && (!may_be_anybody(address) || has_interface(address))
}

fn may_be_anybody(address: IpAddr) -> bool {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let setting = fs::read_to_string(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    setting.is_ok_and(|text| text.trim() != "0")
}

fn has_interface(address: IpAddr) -> bool {
    let Ok(mut all) = getifaddrs() else {
        return false;
    };
    all.any(|one| {
        let Some(storage) = one.address else {
            return false;
        };
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        v4.or(v6) == Some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_others() {
        for (text, own) in [
            ("127.0.0.1", true),
            ("192.0.2.77", false),
            ("2001:db8::77", false),
        ] {
            let address = text.parse().unwrap();
            assert_eq!(is_own(address), own, "{text}");
            assert_eq!(has_interface(address), own, "{text}");
        }
    }
}
