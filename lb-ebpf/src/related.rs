//! ICMP errors about flows: whose they are.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{Reason, service::ServiceInfo};

use crate::{
    answer,
    flow::{self, Arrival},
    maps,
    packet::Packet,
    parse::{
        Datagram, Place,
        ethernet::Link,
        icmp::{self, Quoted},
        transport::{Kind, UDP},
    },
    service,
};

/// The real server that a packet without ports belongs to.
pub struct Owner {
    pub backend: u16,
    pub service: u16,
    pub role: u16,
}

/// The owner of the packet that an ICMP error quotes.
#[inline(always)]
pub fn owner<D: Datagram>(packet: &Packet<'_>, link: &Link, ip: &D) -> Result<Owner, Reason> {
    let (ctx, place) = (packet.ctx.ctx, Place::of(link, ip).0);
    let info = ServiceInfo(answer::decode(find_quoted_service(ctx, place))?);
    let backend = answer::decode(find_quoted_flow(ctx, place, info.0))?;
    Ok(Owner {
        backend: backend as u16,
        service: info.id(),
        role: info.role(),
    })
}

impl Owner {
    /// Backend id, service id and role in 16 bits each.
    #[inline(always)]
    pub const fn of(number: u64) -> Self {
        Self {
            backend: number as u16,
            service: (number >> 16) as u16,
            role: (number >> 32) as u16,
        }
    }

    /// The reverse of [`Self::of`].
    #[inline(always)]
    pub const fn number(&self) -> u64 {
        (self.role as u64) << 32 | (self.service as u64) << 16 | self.backend as u64
    }
}

/// The service that sent the quoted packet, as a [`ServiceInfo`]. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_quoted_service(ctx: *mut xdp_md, place: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    answer::encode(service_of(&packet, Place(place)).map(|info| info.0))
}

#[inline(always)]
fn service_of(packet: &Packet<'_>, place: Place) -> Result<ServiceInfo, Reason> {
    let control = maps::control();
    let (_, destination) = place.addresses(packet)?;
    let vip = service::vip_of(control, destination)?;
    let quoted = quoted(packet, place)?;
    if quoted.vip != destination {
        return Err(Reason::IcmpUnmatched);
    }
    service::look_up(control, vip, quoted.vip_port_be, quoted.protocol)
        .map_err(|_| Reason::IcmpUnmatched)
}

/// The backend that sent the quoted packet. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_quoted_flow(ctx: *mut xdp_md, place: u64, info: u64) -> i64 {
    let ctx = XdpContext::new(ctx);
    let packet = Packet::again(&ctx);
    let backend = quoted(&packet, Place(place)).and_then(|quoted| {
        let kind = if quoted.protocol == UDP {
            Kind::Datagram
        } else {
            Kind::Data
        };
        flow::peek(&Arrival {
            client: quoted.client,
            info,
            client_port_be: quoted.client_port_be,
            vport_be: quoted.vip_port_be,
            kind: kind as u32,
            is_land: 0,
        })
    });
    answer::encode(backend.map(u64::from))
}

#[inline(always)]
fn quoted(packet: &Packet<'_>, place: Place) -> Result<Quoted, Reason> {
    if place.is_v4() {
        icmp::quoted_v4(packet, place.transport())
    } else {
        icmp::quoted_v6(packet, place.transport())
    }
}
