//! Is this packet for a virtual service, and does this node serve it?

use lb_common::{
    Address, Control, Reason,
    control::Generation,
    limits::{MAX_PORT_RANGES, MAX_ROLES, RANGES_PER_VIP, SERVICE_PROBES},
    service::{self, ServiceFlags, ServiceInfo, ServiceKey},
};

use crate::{
    answer,
    maps::{self, PORT_RANGES},
};

/// What stands for an address in service keys: a [`ServiceKey`] without port and protocol.
#[derive(Clone, Copy)]
pub struct Vip(u64);

impl Vip {
    #[inline(always)]
    pub const fn v4(address_be: u32) -> Self {
        Self(ServiceKey::v4(address_be, 0, 0).0)
    }

    #[inline(always)]
    const fn key(self, port_be: u16, protocol: u8) -> ServiceKey {
        ServiceKey(self.0 | (port_be as u64) << 16 | (protocol as u64) << 8)
    }
}

/// Number of the live generation.
#[inline(always)]
pub fn live(control: &Control) -> u32 {
    control.live & 1
}

#[inline(always)]
fn generation(control: &Control) -> &Generation {
    &control.generations[live(control) as usize & 1]
}

/// The IPv6 address, if it is a VIP.
#[inline(always)]
pub fn vip_v6(control: &Control, address: [u64; 2]) -> Option<Vip> {
    let parameters = generation(control);
    let first = service::vip_bucket(address, parameters.service_seed, parameters.vip_mask);
    match search_vips(control, address, first) {
        Search::Found(vip) => Some(vip),
        Search::Absent => None,
        Search::Overflown => {
            let found = find_vip_beyond(address[0], address[1]);
            answer::decode(found).ok().map(Vip)
        }
    }
}

/// What one bucket says.
enum Search<T> {
    Found(T),
    /// Neither here nor further on.
    Absent,
    /// The bucket is full: perhaps further on.
    Overflown,
}

#[inline(always)]
fn search_vips(control: &Control, address: [u64; 2], index: u32) -> Search<Vip> {
    let index = index & generation(control).vip_mask;
    let bucket = maps::vip_bucket(live(control), index);
    for way in 0..2 {
        if bucket.addresses[way] == address && bucket.handles[way] != 0 {
            return Search::Found(Vip(ServiceKey::v6(bucket.handles[way], 0, 0).0));
        }
    }
    // Buckets are filled from the front, and only what has no room goes to the next one.
    match bucket.handles[1] {
        0 => Search::Absent,
        _ => Search::Overflown,
    }
}

/// Verified on its own. Answers with a [`Vip`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_vip_beyond(high: u64, low: u64) -> i64 {
    let control = maps::control();
    let parameters = generation(control);
    let address = [high, low];
    let first = service::vip_bucket(address, parameters.service_seed, parameters.vip_mask);
    for probe in 1..SERVICE_PROBES {
        match search_vips(control, address, first + probe) {
            Search::Found(vip) => return answer::encode(Ok(vip.0)),
            Search::Absent => break,
            Search::Overflown => {}
        }
    }
    answer::encode(Err(Reason::NotAService))
}

/// The service of one port that packets to this address, port and protocol are for.
#[inline(always)]
pub fn single(control: &Control, vip: Vip, port_be: u16, protocol: u8) -> Option<ServiceInfo> {
    // Port 0 in the table means something else, which is special.
    entry(control, vip.key(port_be, protocol)).filter(|info| !info.is_special())
}

/// Whether there are services that are not of one port.
#[inline(always)]
pub fn has_ranges(control: &Control) -> bool {
    generation(control).wildcards != 0
}

#[inline(always)]
fn entry(control: &Control, key: ServiceKey) -> Option<ServiceInfo> {
    let parameters = generation(control);
    let first = key.bucket(parameters.service_seed, parameters.service_mask);
    match search_services(control, key, first) {
        Search::Found(info) => Some(info),
        Search::Absent => None,
        Search::Overflown => answer::decode(find_entry_beyond(key.0))
            .ok()
            .map(ServiceInfo),
    }
}

#[inline(always)]
fn search_services(control: &Control, key: ServiceKey, index: u32) -> Search<ServiceInfo> {
    let index = index & generation(control).service_mask;
    let bucket = maps::service_bucket(live(control), index);
    for entry in &bucket.entries {
        if entry.key == key.0 {
            return Search::Found(ServiceInfo(entry.info));
        }
    }
    match bucket.entries[bucket.entries.len() - 1].key {
        0 => Search::Absent,
        _ => Search::Overflown,
    }
}

/// Verified on its own. Answers with a [`ServiceInfo`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_entry_beyond(key: u64) -> i64 {
    let control = maps::control();
    let key = ServiceKey(key);
    let parameters = generation(control);
    let first = key.bucket(parameters.service_seed, parameters.service_mask);
    for probe in 1..SERVICE_PROBES {
        match search_services(control, key, first + probe) {
            Search::Found(info) => return answer::encode(Ok(info.0)),
            Search::Absent => break,
            Search::Overflown => {}
        }
    }
    answer::encode(Err(Reason::NotAService))
}

/// Whether the address has any service.
#[inline(always)]
pub fn is_vip(control: &Control, vip: Vip) -> bool {
    entry(control, vip.key(0, 0)).is_some()
}

/// The address, if it has any service.
#[inline(always)]
pub fn vip_of(control: &Control, address: Address) -> Result<Vip, Reason> {
    let vip = match address.as_v4() {
        Some(be) => Some(Vip::v4(be)),
        None => vip_v6(control, address.0),
    };
    vip.filter(|vip| is_vip(control, *vip))
        .ok_or(Reason::NotAService)
}

/// The service of the live generation that a packet to this address, port and protocol is for.
#[inline(always)]
pub fn look_up(
    control: &Control,
    vip: Vip,
    port_be: u16,
    protocol: u8,
) -> Result<ServiceInfo, Reason> {
    // Port 0 in the table means something else.
    if port_be != 0
        && let Some(info) = entry(control, vip.key(port_be, protocol))
    {
        return Ok(info);
    }
    if !has_ranges(control) {
        return Err(Reason::NotAService);
    }
    in_a_range(vip, port_be, protocol)
}

/// The service of several ports that this one is among.
#[inline(always)]
pub fn in_a_range(vip: Vip, port_be: u16, protocol: u8) -> Result<ServiceInfo, Reason> {
    answer::decode(find_range(vip.key(0, protocol).0, u32::from(port_be))).map(ServiceInfo)
}

/// Verified on its own. Answers with a [`ServiceInfo`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_range(key: u64, port_be: u32) -> i64 {
    answer::encode(search_ranges(ServiceKey(key), u16::from_be(port_be as u16)))
}

#[inline(always)]
fn search_ranges(key: ServiceKey, port: u16) -> Result<u64, Reason> {
    let control = maps::control();
    let ranges = entry(control, key).ok_or(Reason::NotAService)?;
    let first = live(control) * MAX_PORT_RANGES + ranges.first_range();
    for index in 0..RANGES_PER_VIP {
        if index >= u32::from(ranges.range_count()) {
            break;
        }
        let range = PORT_RANGES.get(first + index).ok_or(Reason::NotReady)?;
        if (range.first..=range.last).contains(&port) {
            return Ok(range.info);
        }
    }
    Err(Reason::NotAService)
}

/// Whether this node serves it.
#[inline(always)]
pub fn is_master(control: &Control, role: u16) -> bool {
    control.roles[usize::from(role) & (MAX_ROLES - 1)] != 0
}

/// The same as a requirement.
#[inline(always)]
pub fn require_mastership(control: &Control, role: u16) -> Result<(), Reason> {
    if is_master(control, role) {
        Ok(())
    } else {
        Err(Reason::NotMaster)
    }
}

/// Whether flows of the service are keyed by the destination port too.
#[inline(always)]
pub fn has_several_ports(info: ServiceInfo) -> bool {
    info.flags() & ServiceFlags::WIDE != 0
}
