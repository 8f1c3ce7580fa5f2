//! The flow table: which backend a packet's flow belongs to, and the birth, renewal and moving of
//! flows. `key` knows the two shapes of keys, `slots` the concurrent access to a
//! bucket, `lookup` what follows from what is found.

mod key;
mod lookup;
mod slots;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    Address, Backend, BackendFlags, Control, Reason, flow::FlowKey, limits::BUCKET_WAYS,
    service::ServiceInfo, wide::WideKey,
};

use self::{
    key::{Fingerprinted, Key},
    lookup::{Lookup, table},
};
use crate::{
    answer, maps,
    packet::Packet,
    parse::{
        Datagram, Place,
        ethernet::Link,
        transport::{self, Kind},
    },
    schedule, service,
};

/// The decision for one packet.
#[derive(Clone, Copy)]
pub struct Chosen {
    pub backend: u16,
    /// Whether the scheduler was asked: a new connection for the counters.
    pub scheduled: bool,
}

impl Chosen {
    pub const fn known(backend: u16) -> Self {
        Self {
            backend,
            scheduled: false,
        }
    }
}

/// What the flow tables say of a packet: a backend, or that the scheduler must be asked.
#[derive(Clone, Copy)]
pub struct Decision(u64);

impl Decision {
    const ASK: u32 = 1;
    /// The answer of the scheduler is the start of a flow.
    pub const REMEMBER: u32 = 2;
    /// Limits of new connections hold.
    pub const LIMITED: u32 = 4;
    /// No table knows the flow.
    const NEW: u32 = 8;

    #[inline(always)]
    const fn known(backend: u16) -> Self {
        Self(backend as u64)
    }

    #[inline(always)]
    const fn ask(flags: u32) -> Self {
        Self(((flags | Self::ASK) as u64) << 16)
    }

    /// The flow lies in another table than that of promoted flows.
    #[inline(always)]
    const fn elsewhere(backend: u16) -> Self {
        Self(backend as u64 | 1 << 32)
    }

    #[inline(always)]
    const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn is_to_be_promoted(self) -> bool {
        self.0 >> 32 != 0
    }

    /// What the scheduler must know.
    #[inline(always)]
    const fn newcomer(self) -> Option<u32> {
        match (self.0 >> 16) as u32 & 0xffff {
            0 => None,
            flags => Some(flags),
        }
    }
}

/// A packet of a service.
#[repr(C)]
pub struct Arrival {
    pub client: Address,
    pub info: u64,
    pub client_port_be: u16,
    pub vport_be: u16,
    /// See [`Kind`].
    pub kind: u32,
    /// Non-zero if source and destination are the same.
    pub is_land: u64,
}

/// Goes on with the backend of a promoted flow that an IPv4 packet continues, if packets for it only get other
/// addresses and this one may leave to it. What comes next is passed in: a reference that is handed back would be one
/// more look-up. `client` is read when nothing else is in the way.
#[inline(always)]
pub fn continued_v4<T, L>(
    info: ServiceInfo,
    kind: Kind,
    client: impl FnOnce() -> (u32, u16),
    may_leave: impl FnOnce(&Backend) -> Option<L>,
    next: impl FnOnce(u16, &Backend, L) -> T,
) -> Option<T> {
    let jiffies = maps::jiffies();
    let (address_be, port_be) = client();
    let key = FlowKey::new(address_be, port_be, info.id());
    lookup::established(&key, kind, jiffies, may_leave, next)
}

/// The same of an IPv6 packet; `client` also reads the port that it is sent to.
#[inline(always)]
pub fn continued_v6<T, L>(
    info: ServiceInfo,
    kind: Kind,
    client: impl FnOnce() -> (Address, u16, u16),
    may_leave: impl FnOnce(&Backend) -> Option<L>,
    next: impl FnOnce(u16, &Backend, L) -> T,
) -> Option<T> {
    let jiffies = maps::jiffies();
    let (address, port_be, vport_be) = client();
    let key = WideKey::new(address, port_be, vport_be, info.id());
    let key = Fingerprinted::new(maps::control(), key);
    lookup::established(&key, kind, jiffies, may_leave, next)
}

/// Finds or makes the flow of a packet.
#[inline(always)]
pub fn backend_of<D: Datagram>(
    packet: &Packet<'_>,
    info: ServiceInfo,
    link: &Link,
    ip: &D,
) -> Result<Chosen, Reason> {
    let narrow = D::IS_V4 && !service::has_several_ports(info);
    let (ctx, place) = (packet.ctx.ctx, Place::of(link, ip).0);
    let decision = Decision(answer::decode(if narrow {
        decide_v4(ctx, place, info.0)
    } else {
        decide_wide(ctx, place, info.0)
    })?);
    let Some(newcomer) = decision.newcomer() else {
        if decision.is_to_be_promoted() {
            promote(ctx, place, info.0, u32::from(narrow));
        }
        return Ok(Chosen::known(decision.backend()));
    };
    let backend = schedule::choose(packet, place, info, newcomer)?;
    if newcomer & Decision::REMEMBER == 0 {
        // The end of a connection that nobody here remembers is not the start of one.
        return Ok(Chosen::known(backend));
    }
    let choice = u64::from(newcomer) << 32 | u64::from(narrow) << 16 | u64::from(backend);
    settle(ctx, place, info.0, choice);
    Ok(Chosen {
        backend,
        scheduled: true,
    })
}

/// The backend that a packet would go to if it could, without a trace in any table; 0 where there is none. As with
/// segments that end a connection nobody remembers, a packet of no flow is scheduled by hash.
#[inline(always)]
pub fn foreseen<D: Datagram>(packet: &Packet<'_>, info: ServiceInfo, link: &Link, ip: &D) -> u16 {
    let place = Place::of(link, ip).0;
    match answer::decode(find_flow(packet.ctx.ctx, place, info.0)) {
        Ok(backend) => backend as u16,
        Err(_) => schedule::choose(packet, place, info, 0).unwrap_or_default(),
    }
}

/// The backend of a packet's flow. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_flow(ctx: *mut xdp_md, place: u64, info: u64) -> i64 {
    let backend = Arrival::read(ctx, place, info).and_then(|arrival| peek(&arrival));
    answer::encode(backend.map(u64::from))
}

/// Every packet of an IPv4 flow but the commonest ones. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn decide_v4(ctx: *mut xdp_md, place: u64, info: u64) -> i64 {
    let decision = with_narrow(ctx, place, info, |look| look.decide());
    answer::encode(
        decision
            .and_then(|decision| decision)
            .map(|decision| decision.0),
    )
}

/// The same for wide flows. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn decide_wide(ctx: *mut xdp_md, place: u64, info: u64) -> i64 {
    let decision = with_wide(ctx, place, info, |look| look.decide());
    answer::encode(
        decision
            .and_then(|decision| decision)
            .map(|decision| decision.0),
    )
}

/// Moves a flow to the table of promoted flows. Verified on its own. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn promote(ctx: *mut xdp_md, place: u64, info: u64, narrow: u32) -> i64 {
    let _ = if narrow != 0 {
        with_narrow(ctx, place, info, |look| look.promote())
    } else {
        with_wide(ctx, place, info, |look| look.promote())
    };
    0
}

/// Makes or changes a flow. The backend is in bits 0-15 of `choice`, bit 16 is set for IPv4 clients of
/// services of one port, and the scheduler's flags are in 32-47. Verified on its own. Always 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle(ctx: *mut xdp_md, place: u64, info: u64, choice: u64) -> i64 {
    let backend = choice as u16;
    let new = (choice >> 32) as u32 & Decision::NEW != 0;
    let _ = if choice >> 16 & 1 != 0 {
        with_narrow(ctx, place, info, |look| look.settle(backend, new))
    } else {
        with_wide(ctx, place, info, |look| look.settle(backend, new))
    };
    0
}

#[inline(always)]
fn with_narrow<T>(
    ctx: *mut xdp_md,
    place: u64,
    info: u64,
    work: impl FnOnce(&Lookup<'_, FlowKey>) -> T,
) -> Result<T, Reason> {
    let control = maps::control();
    let arrival = Arrival::read(ctx, place, info)?;
    let client_be = arrival.client.as_v4().unwrap_or_default();
    let key = FlowKey::new(client_be, arrival.client_port_be, arrival.service());
    Ok(work(&Lookup::new(
        control,
        ServiceInfo(info),
        key,
        arrival.kind(),
    )))
}

#[inline(always)]
fn with_wide<T>(
    ctx: *mut xdp_md,
    place: u64,
    info: u64,
    work: impl FnOnce(&Lookup<'_, Fingerprinted>) -> T,
) -> Result<T, Reason> {
    let control = maps::control();
    let arrival = Arrival::read(ctx, place, info)?;
    let key = Fingerprinted::new(control, arrival.wide_key());
    Ok(work(&Lookup::new(
        control,
        ServiceInfo(info),
        key,
        arrival.kind(),
    )))
}

impl Arrival {
    /// Reads the packet again.
    #[inline(always)]
    pub fn read(ctx: *mut xdp_md, place: u64, info: u64) -> Result<Self, Reason> {
        let ctx = XdpContext::new(ctx);
        let packet = Packet::again(&ctx);
        let place = Place(place);
        let (client, vip) = place.addresses(&packet)?;
        // The length was checked when the packet was read first.
        let transport = transport::parse(&packet, place.protocol(), place.transport(), usize::MAX)?;
        Ok(Self {
            client,
            info,
            client_port_be: transport.source_port_be,
            vport_be: transport.destination_port_be,
            kind: transport.kind as u32,
            is_land: u64::from(client == vip),
        })
    }

    /// A number that is the same for every packet of the flow.
    #[inline(always)]
    pub fn hash(&self, control: &Control) -> u64 {
        self.wide_key().fingerprint(control.hash_secret)
    }

    #[inline(always)]
    pub fn service(&self) -> u16 {
        ServiceInfo(self.info).id()
    }

    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.kind == Kind::Datagram as u32
    }

    #[inline(always)]
    fn kind(&self) -> Kind {
        match self.kind {
            0 => Kind::Open,
            1 => Kind::End,
            2 => Kind::Data,
            _ => Kind::Datagram,
        }
    }

    #[inline(always)]
    fn wide_key(&self) -> WideKey {
        WideKey::new(
            self.client,
            self.client_port_be,
            self.vport_be,
            self.service(),
        )
    }
}

/// The backend of a flow that exists, without touching it.
#[inline(always)]
pub fn peek(arrival: &Arrival) -> Result<u16, Reason> {
    let control = maps::control();
    let is_udp = arrival.kind() == Kind::Datagram;
    match arrival.client.as_v4() {
        Some(client_be) if !service::has_several_ports(ServiceInfo(arrival.info)) => {
            let key = FlowKey::new(client_be, arrival.client_port_be, arrival.service());
            find_anywhere(control, key, is_udp)
        }
        _ => find_anywhere(
            control,
            Fingerprinted::new(control, arrival.wide_key()),
            is_udp,
        ),
    }
}

#[inline(always)]
fn find_anywhere<K: Key>(control: &Control, key: K, is_udp: bool) -> Result<u16, Reason> {
    let hash = key.hash(control);
    let table = table::<K>(is_udp);
    let buckets = [
        K::bucket(control.tables[table], hash),
        K::half_open(is_udp, hash),
        K::bucket(control.previous[table], hash),
    ];
    for bucket in buckets {
        if let Some(bucket) = bucket
            && let Some(place) = slots::find(&key, bucket)
        {
            return alive_or(place.value.backend());
        }
    }
    match key.spilled() {
        Some(value) => alive_or(value.backend()),
        None => Err(Reason::IcmpUnmatched),
    }
}

#[inline(always)]
fn alive_or(backend: u16) -> Result<u16, Reason> {
    if alive(backend) {
        Ok(backend)
    } else {
        Err(Reason::IcmpUnmatched)
    }
}

/// Whether a packet of a flow is for its backend. One whose flows are reset has no new ones.
#[inline(always)]
fn serves(backend: u16, kind: Kind) -> bool {
    let flags = maps::backend(backend).flags();
    flags & BackendFlags::ALIVE != 0 && (kind != Kind::Open || flags & BackendFlags::RESET == 0)
}

#[inline(always)]
fn alive(backend: u16) -> bool {
    maps::backend(backend).flags() & BackendFlags::ALIVE != 0
}

const _: () = assert!(BUCKET_WAYS.is_power_of_two());
