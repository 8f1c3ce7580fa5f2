//! The flow table: which backend a packet's flow belongs to, and the birth, renewal and moving of
//! flows.
//!
//! Readers and writers share buckets without a lock. A writer claims a slot by swapping its value
//! for BUSY, writes the key, then the value. A reader takes key, value and the key again: only with
//! both halves of that protocol can no reader see one flow's key with another's backend. Memory
//! order is that of x86-64.

use lb_common::{
    BackendFlags, Control, Reason, Service,
    flow::{self, Bucket, FlowKey, FlowTable, FlowValue, REFRESH_TICKS, Slot},
    limits::BUCKET_WAYS,
};

use crate::{
    atomic, forward,
    maps::{FLOWS, SPILL, now},
    parse::{
        ipv4::Ipv4,
        transport::{Kind, Transport},
    },
    schedule,
};

/// The decision for one packet.
pub struct Chosen {
    pub backend: u16,
    /// Whether the scheduler was asked: a new connection for the counters.
    pub scheduled: bool,
}

/// Everything about the packet that the table needs.
struct Lookup<'a> {
    control: &'a Control,
    service: &'a Service,
    key: FlowKey,
    hash: u64,
    kind: Kind,
    now: u32,
}

/// Finds or makes the flow.
#[inline(always)]
pub fn backend_of(
    control: &Control,
    service: &Service,
    ip: &Ipv4,
    transport: &Transport,
) -> Result<Chosen, Reason> {
    let look = Lookup {
        control,
        service,
        key: FlowKey::new(ip.source_be, transport.source_port_be, service.id),
        hash: flow::hash(
            control.hash_secret,
            ip.source_be,
            transport.source_port_be,
            ip.destination_be,
            transport.destination_port_be,
        ),
        kind: transport.kind,
        now: now(control),
    };
    let (promoted, half_open) = match look.kind {
        Kind::Udp => (FlowTable::Udp, FlowTable::UdpHalfOpen),
        Kind::TcpSyn | Kind::TcpEnd | Kind::TcpData => (FlowTable::Tcp, FlowTable::TcpHalfOpen),
    };
    let promoted = look.bucket(promoted)?;
    if let Some((slot, value)) = look.find(promoted) {
        return look.continue_flow(slot, value);
    }
    let half_open = look.bucket(half_open)?;
    match look.find(half_open) {
        Some((slot, value)) => look.second_packet(promoted, slot, value),
        None => look.spilled_or_first_packet(promoted, half_open),
    }
}

impl Lookup<'_> {
    #[inline(always)]
    fn bucket(&self, table: FlowTable) -> Result<*mut Bucket, Reason> {
        let index = flow::bucket(self.hash, self.control.bucket_mask[table as usize]);
        FLOWS
            .get_value_ptr_mut(table as u32, &index)
            .ok_or(Reason::NotReady)
    }

    /// The slot of this flow, expired or not.
    #[inline(always)]
    fn find(&self, bucket: *mut Bucket) -> Option<(*mut Slot, FlowValue)> {
        for way in 0..BUCKET_WAYS {
            let slot = slot_at(bucket, way);
            if read_key(slot) == self.key {
                let value = read_value(slot);
                if !value.is_busy() && read_key(slot) == self.key {
                    return Some((slot, value));
                }
            }
        }
        None
    }

    /// A packet of a promoted flow.
    #[inline(always)]
    fn continue_flow(&self, slot: *mut Slot, value: FlowValue) -> Result<Chosen, Reason> {
        let reopened = self.kind == Kind::TcpSyn && (value.is_closing() || value.is_free(self.now));
        if reopened || !alive(value.backend())? {
            return self.reschedule(slot, value);
        }
        let closing = value.is_closing() || self.kind == Kind::TcpEnd;
        let expires = self.expiry(closing);
        let gained = expires.wrapping_sub(value.expires());
        // Shortening (to the closing time-out) shows as a huge gain and is written as well.
        if gained >= REFRESH_TICKS || closing != value.is_closing() {
            replace(
                slot,
                value,
                FlowValue::new(value.backend(), expires, closing),
            );
        }
        Ok(Chosen {
            backend: value.backend(),
            scheduled: false,
        })
    }

    /// A packet of a flow that only the half-open table knows.
    #[inline(always)]
    fn second_packet(
        &self,
        promoted: *mut Bucket,
        slot: *mut Slot,
        value: FlowValue,
    ) -> Result<Chosen, Reason> {
        let fresh_syn = self.kind == Kind::TcpSyn && value.is_free(self.now);
        if fresh_syn || !alive(value.backend())? {
            return self.reschedule(slot, value);
        }
        if self.kind != Kind::TcpSyn {
            let closing = self.kind == Kind::TcpEnd;
            let flow = FlowValue::new(value.backend(), self.expiry(closing), closing);
            let left = if self.insert(promoted, flow) {
                // The half-open slot is free for others.
                FlowValue::new(value.backend(), self.now, false)
            } else {
                // A full bucket, or a lost race. The flow lives on in the half-open table, where a
                // flood may evict it; the spill table remembers it then.
                let _ = SPILL.insert(self.key.0, flow.0, 0);
                flow
            };
            replace(slot, value, left);
        }
        Ok(Chosen {
            backend: value.backend(),
            scheduled: false,
        })
    }

    /// A packet that neither table knows. Only where the promoted bucket is full can the flow have
    /// been spilled, so a flood of new flows does not pay for this look-up.
    #[inline(always)]
    fn spilled_or_first_packet(
        &self,
        promoted: *mut Bucket,
        half_open: *mut Bucket,
    ) -> Result<Chosen, Reason> {
        if self.kind != Kind::TcpSyn && self.is_full(promoted) {
            // SAFETY: the value is copied at once; a concurrent update can only replace it whole.
            let spilled = unsafe { SPILL.get(self.key.0) }.map(|value| FlowValue(*value));
            if let Some(value) = spilled
                && alive(value.backend())?
            {
                let closing = value.is_closing() || self.kind == Kind::TcpEnd;
                let flow = FlowValue::new(value.backend(), self.expiry(closing), closing);
                if !self.insert(promoted, flow) {
                    self.insert_evicting(half_open, flow);
                }
                return Ok(Chosen {
                    backend: value.backend(),
                    scheduled: false,
                });
            }
        }
        self.first_packet(half_open)
    }

    /// A packet of an unknown flow.
    #[inline(always)]
    fn first_packet(&self, half_open: *mut Bucket) -> Result<Chosen, Reason> {
        if self.kind == Kind::TcpEnd {
            // The end of a connection that nobody here remembers is not the start of one.
            let backend = schedule::by_hash(self.service, self.hash)?;
            return Ok(Chosen {
                backend,
                scheduled: false,
            });
        }
        let backend = schedule::next(self.service)?;
        let flow = FlowValue::new(backend, self.half_open_expiry(), false);
        self.insert_evicting(half_open, flow);
        Ok(Chosen {
            backend,
            scheduled: true,
        })
    }

    /// Gives the flow in `slot` to another backend.
    #[inline(always)]
    fn reschedule(&self, slot: *mut Slot, old: FlowValue) -> Result<Chosen, Reason> {
        let backend = schedule::next(self.service)?;
        replace(
            slot,
            old,
            FlowValue::new(backend, self.half_open_expiry(), false),
        );
        Ok(Chosen {
            backend,
            scheduled: true,
        })
    }

    /// Takes the first free slot of the bucket. A lost race counts as a full bucket.
    #[inline(always)]
    fn insert(&self, bucket: *mut Bucket, flow: FlowValue) -> bool {
        for way in 0..BUCKET_WAYS {
            let slot = slot_at(bucket, way);
            let value = read_value(slot);
            if value.is_free(self.now) {
                return claim(slot, value, self.key, flow, self.now);
            }
        }
        false
    }

    /// Takes a free slot, or any.
    #[inline(always)]
    fn insert_evicting(&self, bucket: *mut Bucket, flow: FlowValue) {
        if !self.insert(bucket, flow) {
            let victim = slot_at(bucket, (self.hash >> 40) as usize & (BUCKET_WAYS - 1));
            let value = read_value(victim);
            if !value.is_busy() {
                claim(victim, value, self.key, flow, self.now);
            }
        }
    }

    #[inline(always)]
    fn is_full(&self, bucket: *mut Bucket) -> bool {
        (0..BUCKET_WAYS).all(|way| !read_value(slot_at(bucket, way)).is_free(self.now))
    }

    #[inline(always)]
    fn expiry(&self, closing: bool) -> u32 {
        let timeouts = &self.control.timeouts;
        self.now.wrapping_add(match (self.kind, closing) {
            (Kind::Udp, _) => timeouts.udp,
            (_, true) => timeouts.tcp_closing,
            (_, false) => timeouts.tcp,
        })
    }

    #[inline(always)]
    fn half_open_expiry(&self) -> u32 {
        let timeouts = &self.control.timeouts;
        self.now.wrapping_add(if self.kind == Kind::Udp {
            timeouts.udp
        } else {
            timeouts.tcp_half_open
        })
    }
}

#[inline(always)]
fn alive(backend: u16) -> Result<bool, Reason> {
    Ok(forward::element(backend)?.flags() & BackendFlags::ALIVE != 0)
}

#[inline(always)]
fn slot_at(bucket: *mut Bucket, way: usize) -> *mut Slot {
    // SAFETY: callers pass a map element and a way below BUCKET_WAYS; nothing is read here.
    unsafe { &raw mut (*bucket).slots[way & (BUCKET_WAYS - 1)] }
}

/// A load that the compiler neither merges nor moves.
#[inline(always)]
fn read_key(slot: *mut Slot) -> FlowKey {
    // SAFETY: `slot` lies in a map element, which stays mapped while the program runs.
    FlowKey(unsafe { (&raw const (*slot).key).read_volatile() })
}

/// As [`read_key`].
#[inline(always)]
fn read_value(slot: *mut Slot) -> FlowValue {
    // SAFETY: as above.
    FlowValue(unsafe { (&raw const (*slot).value).read_volatile() })
}

/// Swaps a value that must not have changed since it was read.
#[inline(always)]
fn replace(slot: *mut Slot, old: FlowValue, new: FlowValue) -> bool {
    // SAFETY: `slot` lies in a map element and is eight-byte aligned.
    unsafe { atomic::compare_exchange(&raw mut (*slot).value, old.0, new.0) }
}

/// Takes over a slot for another flow: BUSY, key, value.
#[inline(always)]
fn claim(slot: *mut Slot, old: FlowValue, key: FlowKey, flow: FlowValue, now: u32) -> bool {
    if !replace(slot, old, FlowValue::busy(now)) {
        return false;
    }
    // SAFETY: the slot lies in a map element, and BUSY makes this CPU its only writer.
    unsafe {
        (&raw mut (*slot).key).write_volatile(key.0);
        (&raw mut (*slot).value).write_volatile(flow.0);
    }
    true
}
