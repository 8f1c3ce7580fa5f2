//! From a backend id to the interface that the frame leaves by.

use lb_common::{
    Backend, BackendFlags, Control, Reason,
    control::{EVERY_VLAN, Features, vlan_key},
    limits,
};

use crate::{
    maps::{OWN_VLANS, VLAN_SETS},
    packet::Packet,
    parse::ethernet::{Addressee, Link},
};

/// How the frame leaves.
pub enum Forward {
    /// By the interface it came in on.
    Transmit,
    /// By the interface of this index.
    Redirect(u32),
    /// It does not: the backend is this host.
    ToStack,
}

/// Where the frame has to go. Decided before anything is written to it.
#[inline(always)]
pub fn way_to(packet: &Packet<'_>, backend: &Backend) -> Result<Forward, Reason> {
    let flags = backend.flags();
    if flags & BackendFlags::LOCAL != 0 {
        return Ok(Forward::ToStack);
    }
    if flags & BackendFlags::RESOLVED == 0 {
        return Err(Reason::NeighbourUnknown);
    }
    out(packet, backend)
}

/// Which interface it leaves by.
#[inline(always)]
pub fn out(packet: &Packet<'_>, backend: &Backend) -> Result<Forward, Reason> {
    let ifindex = backend.ifindex as u32;
    if ifindex == packet.ingress_ifindex() {
        Ok(Forward::Transmit)
    } else if backend.flags() & BackendFlags::NO_REDIRECT != 0 {
        Err(Reason::NoRedirect)
    } else {
        Ok(Forward::Redirect(ifindex))
    }
}

/// Whether the frame was sent to this host at Ethernet level. The kernel ignores all others, and
/// forwarding them would double what a switch floods.
#[inline(always)]
pub fn require_own_address(link: &Link) -> Result<(), Reason> {
    match link.addressee {
        Addressee::Us => Ok(()),
        Addressee::Other => Err(Reason::ForeignMac),
        Addressee::Group => Err(Reason::NotUnicast),
    }
}

/// Whether a tagged frame is of a VLAN that this host is in.
#[inline(always)]
pub fn require_own_vlan(packet: &Packet<'_>, control: &Control, link: &Link) -> Result<(), Reason> {
    if link.outer | link.inner == 0 || control.features & Features::VLANS == 0 {
        return Ok(());
    }
    let ifindex = packet.ingress_ifindex();
    let own = match VLAN_SETS.get(ifindex & (limits::VLAN_SETS - 1)) {
        Some(set) if link.inner == 0 && set.ifindex == u64::from(ifindex) => {
            set.has(id(link.outer))
        }
        _ => is_own_vlan(ifindex, link.outer, link.inner) != 0,
    };
    if own {
        Ok(())
    } else {
        Err(Reason::ForeignVlan)
    }
}

/// A VLAN id without the mark that links have.
#[inline(always)]
fn id(tag: u16) -> u16 {
    tag & !Backend::TAGGED
}

/// Two tags, or an interface whose slot another one has. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_own_vlan(ifindex: u32, outer: u16, inner: u16) -> i64 {
    let is_own = |outer, inner| OWN_VLANS.get_ptr(vlan_key(ifindex, outer, inner)).is_some();
    i64::from(is_own(id(outer), id(inner)) || is_own(EVERY_VLAN, 0))
}
