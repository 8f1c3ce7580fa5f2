//! What the tables say of one packet, and what is written to them.

use lb_common::{
    Backend, Control, Reason,
    control::Features,
    flow::{self, Bucket, FlowTable, FlowValue, REFRESH_TICKS},
    service::{ServiceFlags, ServiceInfo},
};

use super::{
    Decision, alive,
    key::Key,
    serves,
    slots::{self, Found},
};
use crate::{
    atomic,
    maps::{self, LOADS, now},
    parse::transport::Kind,
};

/// Everything about the packet that the table needs.
pub struct Lookup<'a, K> {
    control: &'a Control,
    info: ServiceInfo,
    key: K,
    hash: u64,
    kind: Kind,
    now: u32,
}

/// The common case alone: a packet that neither opens nor ends a connection continues a promoted flow, and the
/// backend's packets only get other addresses. Goes on with the backend if the packet may leave to it.
#[inline(always)]
pub fn established<K: Key, T, L>(
    key: &K,
    kind: Kind,
    jiffies: u64,
    may_leave: impl FnOnce(&Backend) -> Option<L>,
    next: impl FnOnce(u16, &Backend, L) -> T,
) -> Option<T> {
    let control = maps::control();
    let is_udp = kind == Kind::Datagram;
    let bucket = K::bucket(control.tables[table::<K>(is_udp)], key.hash(control))?;
    let place = slots::find_lasting(key, bucket)?;
    let id = place.value.backend();
    let backend = maps::backend(id);
    // SAFETY: an element of a map. The word is read once more when it is needed, and not kept until then.
    let destination = unsafe { (&raw const backend.destination).read_volatile() };
    if !Backend::is_plain(destination) {
        return None;
    }
    let leave = may_leave(backend)?;
    let control = maps::control();
    let timeout = if is_udp {
        control.timeouts.udp
    } else {
        control.timeouts.tcp
    };
    let expires = flow::tick_of(jiffies, control.tick_scale).wrapping_add(timeout);
    if expires.wrapping_sub(place.value.expires()) >= REFRESH_TICKS {
        slots::replace(&place, FlowValue::new(id, expires, false));
    }
    Some(next(id, backend, leave))
}

impl<'a, K: Key> Lookup<'a, K> {
    #[inline(always)]
    pub fn new(control: &'a Control, info: ServiceInfo, key: K, kind: Kind) -> Self {
        Self {
            hash: key.hash(control),
            control,
            info,
            key,
            kind,
            now: now(control),
        }
    }

    /// Every case.
    #[inline(always)]
    pub fn decide(&self) -> Result<Decision, Reason> {
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
        match slots::find(&self.key, half_open) {
            Some(place) => Ok(self.second_packet(&place)),
            None => self.spilled_or_first_packet(promoted),
        }
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
        !self.is_reopened(place) && serves(place.value.backend(), self.kind)
    }

    /// Whether the packet opens a connection where the flow in a place has ended.
    #[inline(always)]
    fn is_reopened(&self, place: &Found) -> bool {
        let value = place.value;
        self.kind == Kind::Open && (value.is_closing() || value.is_free(self.now))
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
        if fresh || !serves(value.backend(), self.kind) {
            return self.reschedule();
        }
        match self.kind {
            Kind::Open => Decision::known(value.backend()),
            _ => Decision::elsewhere(value.backend()),
        }
    }

    /// A packet that neither table knows. Where the promoted bucket is full the flow may have been
    /// spilled; where it is not full any more the daemon brings spilled flows home. So a flood of new
    /// flows does not pay for this look-up.
    #[inline(always)]
    fn spilled_or_first_packet(&self, promoted: *mut Bucket) -> Result<Decision, Reason> {
        if self.kind != Kind::Open
            && slots::is_full(promoted, self.now)
            && let Some(value) = self.key.spilled()
            && !value.is_free(self.now)
            && alive(value.backend())
        {
            return Ok(Decision::elsewhere(value.backend()));
        }
        if self.kind != Kind::Open && self.control.features & Features::HANDOVER != 0 {
            return Err(Reason::Handover);
        }
        Ok(match self.kind {
            Kind::End => Decision::ask(0),
            _ => Decision::ask(Decision::REMEMBER | Decision::LIMITED | Decision::NEW),
        })
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
    pub fn settle(&self, backend: u16, new: bool) {
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
    pub fn promote(&self) {
        let (Ok(promoted), Ok(half_open)) = (self.promoted(), self.half_open()) else {
            return;
        };
        if let Some(old) = self.previous()
            && let Some(place) = slots::find(&self.key, old)
        {
            self.move_and_count(&place, promoted);
            return;
        }
        if let Some(place) = slots::find(&self.key, half_open) {
            self.move_and_count(&place, promoted);
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

    /// Moves a flow; one that begins to close now is not active any more.
    #[inline(always)]
    fn move_and_count(&self, place: &Found, promoted: *mut Bucket) {
        let value = place.value;
        let closes = self.kind == Kind::End && !value.is_closing();
        if self.move_from(place, promoted) && closes {
            self.count(value.backend(), -1, 1);
        }
    }

    /// Moves a flow. The slot that it leaves expired two ticks ago: it is free for others, and the daemon,
    /// whose clock may be a tick behind, does not count the flow twice. Says whether it went, and nobody
    /// else did it.
    #[inline(always)]
    fn move_from(&self, place: &Found, promoted: *mut Bucket) -> bool {
        let flow = self.renewed(place.value);
        if slots::insert(&self.key, promoted, flow, self.now) {
            let left = FlowValue::new(flow.backend(), self.now.wrapping_sub(2), false);
            slots::replace(place, left)
        } else {
            self.key.spill(flow);
            slots::replace(place, flow);
            false
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

/// Index of the table of promoted flows.
#[inline(always)]
pub fn table<K: Key>(is_udp: bool) -> usize {
    let table = if is_udp {
        FlowTable::Udp
    } else {
        FlowTable::Tcp
    };
    table as usize + K::FIRST_TABLE
}
