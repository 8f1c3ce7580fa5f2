//! The flow table: which backend a packet's flow belongs to, and the birth, renewal and moving of
//! flows. `key` knows the two shapes of keys, `slots` the concurrent access to a bucket.

mod key;
mod slots;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    Address, BackendFlags, Control, Reason,
    flow::{Bucket, FlowKey, FlowTable, FlowValue, REFRESH_TICKS},
    limits::BUCKET_WAYS,
    service::{ServiceFlags, ServiceInfo},
    wide::WideKey,
};

use self::{
    key::{Fingerprinted, Key},
    slots::Found,
};
use crate::{
    answer, atomic, forward,
    maps::{self, LOADS, now},
    packet::Packet,
    parse::{
        Datagram, Place,
        ethernet::Link,
        transport::{self, Kind, Transport},
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

/// Everything about the packet that the table needs.
struct Lookup<'a, K> {
    control: &'a Control,
    info: ServiceInfo,
    key: K,
    hash: u64,
    kind: Kind,
    now: u32,
}

/// Finds or makes the flow of a packet.
#[inline(always)]
pub fn backend_of<D: Datagram>(
    packet: &Packet<'_>,
    control: &Control,
    info: ServiceInfo,
    link: &Link,
    ip: &D,
    transport: &Transport,
) -> Result<Chosen, Reason> {
    let narrow = D::IS_V4 && !service::has_several_ports(info);
    if narrow {
        let key = FlowKey::new(ip.source_v4(), transport.source_port_be, info.id());
        let look = Lookup::new(control, info, key, transport.kind);
        if let Some(chosen) = look.established() {
            return Ok(chosen);
        }
    }
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

/// Every packet of an IPv4 flow but the common one. Verified on its own.
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

/// Every packet of a wide flow. Verified on its own.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn decide_wide(ctx: *mut xdp_md, place: u64, info: u64) -> i64 {
    let decision = with_wide(ctx, place, info, |look| match look.established() {
        Some(chosen) => Ok(Decision::known(chosen.backend)),
        None => look.decide(),
    });
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
    let control = maps::control()?;
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
    let control = maps::control()?;
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
        let packet = Packet {
            ctx: &ctx,
            frags: false,
        };
        let place = Place(place);
        let (client, vip) = place.addresses(&packet)?;
        let transport = transport::parse(&packet, place.protocol(), place.transport())?;
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
    let control = maps::control()?;
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

/// Index of the table of promoted flows.
#[inline(always)]
fn table<K: Key>(is_udp: bool) -> usize {
    let table = if is_udp {
        FlowTable::Udp
    } else {
        FlowTable::Tcp
    };
    table as usize + K::FIRST_TABLE
}

impl<'a, K: Key> Lookup<'a, K> {
    #[inline(always)]
    fn new(control: &'a Control, info: ServiceInfo, key: K, kind: Kind) -> Self {
        Self {
            hash: key.hash(control),
            control,
            info,
            key,
            kind,
            now: now(control),
        }
    }

    /// The common case: a packet that continues a promoted flow. `None` leaves it to [`Self::decide`].
    #[inline(always)]
    fn established(&self) -> Option<Chosen> {
        let bucket = K::bucket(self.control.tables[self.table()], self.hash)?;
        let place = slots::find(&self.key, bucket)?;
        if !self.continues(&place) {
            return None;
        }
        self.renew(&place);
        Some(Chosen::known(place.value.backend()))
    }

    #[inline(always)]
    fn decide(&self) -> Result<Decision, Reason> {
        let promoted = self.promoted()?;
        if let Some(place) = slots::find(&self.key, promoted) {
            return Ok(self.continue_flow(&place));
        }
        // A table that grows is two for a while.
        if let Some(old) = self.previous()
            && let Some(place) = slots::find(&self.key, old)
        {
            if !self.continues(&place) {
                return Ok(self.reschedule());
            }
            return Ok(Decision::elsewhere(place.value.backend()));
        }
        let half_open = self.half_open()?;
        Ok(match slots::find(&self.key, half_open) {
            Some(place) => self.second_packet(&place),
            None => self.spilled_or_first_packet(promoted),
        })
    }

    /// The bucket in the table that is being moved out of.
    #[inline(always)]
    fn previous(&self) -> Option<*mut Bucket> {
        match self.control.previous[self.table()] {
            0 => None,
            previous => K::bucket(previous, self.hash),
        }
    }

    #[inline(always)]
    fn table(&self) -> usize {
        table::<K>(self.kind == Kind::Datagram)
    }

    #[inline(always)]
    fn promoted(&self) -> Result<*mut Bucket, Reason> {
        K::bucket(self.control.tables[self.table()], self.hash).ok_or(Reason::NotReady)
    }

    #[inline(always)]
    fn half_open(&self) -> Result<*mut Bucket, Reason> {
        K::half_open(self.kind == Kind::Datagram, self.hash).ok_or(Reason::NotReady)
    }

    /// Whether this is a further packet of the flow in a place, whose backend lives.
    #[inline(always)]
    fn continues(&self, place: &Found) -> bool {
        let value = place.value;
        let reopened = self.kind == Kind::Open && (value.is_closing() || value.is_free(self.now));
        !reopened && alive(value.backend())
    }

    /// A packet of a promoted flow.
    #[inline(always)]
    fn continue_flow(&self, place: &Found) -> Decision {
        if !self.continues(place) {
            return self.reschedule();
        }
        self.renew(place);
        Decision::known(place.value.backend())
    }

    /// Moves the expiry of a flow, and notes that it began to close.
    #[inline(always)]
    fn renew(&self, place: &Found) {
        let value = place.value;
        let closing = value.is_closing() || self.kind == Kind::End;
        let expires = self.expiry(closing);
        let gained = expires.wrapping_sub(value.expires());
        // Shortening (to the closing time-out) shows as a huge gain and is written as well.
        if gained >= REFRESH_TICKS || closing != value.is_closing() {
            let renewed = FlowValue::new(value.backend(), expires, closing);
            if slots::replace(place, renewed) && closing != value.is_closing() {
                self.count(value.backend(), -1, 1);
            }
        }
    }

    /// A packet of a flow that only the half-open table knows.
    #[inline(always)]
    fn second_packet(&self, place: &Found) -> Decision {
        let value = place.value;
        let fresh = self.kind == Kind::Open && value.is_free(self.now);
        if fresh || !alive(value.backend()) {
            return self.reschedule();
        }
        match self.kind {
            Kind::Open => Decision::known(value.backend()),
            _ => Decision::elsewhere(value.backend()),
        }
    }

    /// A packet that neither table knows. Only where the promoted bucket is full can the flow have
    /// been spilled, so a flood of new flows does not pay for this look-up.
    #[inline(always)]
    fn spilled_or_first_packet(&self, promoted: *mut Bucket) -> Decision {
        if self.kind != Kind::Open
            && slots::is_full(promoted, self.now)
            && let Some(value) = self.key.spilled()
            && alive(value.backend())
        {
            return Decision::elsewhere(value.backend());
        }
        match self.kind {
            Kind::End => Decision::ask(0),
            _ => Decision::ask(Decision::REMEMBER | Decision::LIMITED | Decision::NEW),
        }
    }

    /// A flow that has its place needs another backend.
    #[inline(always)]
    fn reschedule(&self) -> Decision {
        match self.kind {
            Kind::Open => Decision::ask(Decision::REMEMBER | Decision::LIMITED),
            _ => Decision::ask(Decision::REMEMBER),
        }
    }

    /// Writes down what the scheduler said: where the flow is already, or in the half-open table.
    #[inline(always)]
    fn settle(&self, backend: u16, new: bool) {
        let flow = FlowValue::new(backend, self.half_open_expiry(), false);
        if new {
            if let Ok(half_open) = self.half_open() {
                slots::insert_evicting(&self.key, half_open, flow, self.now, self.hash);
            }
            return;
        }
        let (Ok(promoted), Ok(half_open)) = (self.promoted(), self.half_open()) else {
            return;
        };
        let mut place = slots::find(&self.key, promoted);
        if place.is_none()
            && let Some(old) = self.previous()
        {
            place = slots::find(&self.key, old);
        }
        if place.is_none() {
            place = slots::find(&self.key, half_open);
        }
        match place {
            Some(place) => {
                slots::replace(&place, flow);
            }
            None => slots::insert_evicting(&self.key, half_open, flow, self.now, self.hash),
        }
    }

    /// Moves a flow from wherever it lies to the table of promoted flows. One that finds no room there
    /// lives on in the half-open table, where a flood may evict it; the spill table remembers it then.
    #[inline(always)]
    fn promote(&self) {
        let (Ok(promoted), Ok(half_open)) = (self.promoted(), self.half_open()) else {
            return;
        };
        if let Some(old) = self.previous()
            && let Some(place) = slots::find(&self.key, old)
        {
            self.move_from(&place, promoted);
            return;
        }
        if let Some(place) = slots::find(&self.key, half_open) {
            let backend = place.value.backend();
            if self.move_from(&place, promoted) && self.kind == Kind::Data {
                self.count(backend, 1, -1);
            }
            return;
        }
        if let Some(value) = self.key.spilled() {
            let flow = self.renewed(value);
            if !slots::insert(&self.key, promoted, flow, self.now) {
                slots::insert_evicting(&self.key, half_open, flow, self.now, self.hash);
            }
        }
    }

    /// The value of a flow that goes on.
    #[inline(always)]
    fn renewed(&self, value: FlowValue) -> FlowValue {
        let closing = value.is_closing() || self.kind == Kind::End;
        FlowValue::new(value.backend(), self.expiry(closing), closing)
    }

    /// Moves a flow. A slot that expires now is free for others. Says whether nobody else did it.
    #[inline(always)]
    fn move_from(&self, place: &Found, promoted: *mut Bucket) -> bool {
        let flow = self.renewed(place.value);
        if slots::insert(&self.key, promoted, flow, self.now) {
            slots::replace(place, FlowValue::new(flow.backend(), self.now, false))
        } else {
            self.key.spill(flow);
            slots::replace(place, flow)
        }
    }

    /// Keeps the connection counts that some schedulers need.
    #[inline(always)]
    fn count(&self, backend: u16, active: i64, inactive: i64) {
        let counted = self.info.flags() & ServiceFlags::COUNTED != 0;
        if !counted || self.kind == Kind::Datagram {
            return;
        }
        if let Some(load) = LOADS.get_ptr_mut(u32::from(backend)) {
            // SAFETY: a live array element; both words are only added to.
            unsafe {
                atomic::fetch_add(&raw mut (*load).active, active as u64);
                atomic::fetch_add(&raw mut (*load).inactive, inactive as u64);
            }
        }
    }

    #[inline(always)]
    fn expiry(&self, closing: bool) -> u32 {
        let timeouts = &self.control.timeouts;
        self.now.wrapping_add(match (self.kind, closing) {
            (Kind::Datagram, _) => timeouts.udp,
            (_, true) => timeouts.tcp_closing,
            (_, false) => timeouts.tcp,
        })
    }

    #[inline(always)]
    fn half_open_expiry(&self) -> u32 {
        let timeouts = &self.control.timeouts;
        self.now.wrapping_add(if self.kind == Kind::Datagram {
            timeouts.udp
        } else {
            timeouts.tcp_half_open
        })
    }
}

#[inline(always)]
fn alive(backend: u16) -> bool {
    forward::element(backend).is_ok_and(|element| element.flags() & BackendFlags::ALIVE != 0)
}

const _: () = assert!(BUCKET_WAYS.is_power_of_two());
