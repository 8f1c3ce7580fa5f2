//! Every BPF map: those that are looked up in, with BTF key and value types, so that libbpf tools read
//! them too, and those whose memory the program has the address of (see `lb_common::memory`).

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{
        Array, ArrayOfMaps, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerfEventArray,
    },
    helpers::bpf_jiffies64,
    macros::btf_map,
};
use lb_common::{
    Address, Backend, BackendCounters, Control, RingChunk,
    control::VlanSet,
    flow::{self, Bucket},
    limits::{
        self, CHUNK_BUCKETS, FLOW_CHUNKS, GENERATIONS, HALF_OPEN_BUCKETS, MAX_BACKENDS,
        MAX_FRAGMENTED, MAX_INTERFACES, MAX_OWN_VLANS, MAX_PORT_RANGES, MAX_PREFIXES, MAX_SERVICES,
        MAX_SOURCES, MAX_STICKY, MAX_STICKY_NEW, RING_CHUNKS_PER_GENERATION, SERVICE_BUCKETS,
        SPILL_FLOWS, VIP_BUCKETS, WIDE_CHUNKS,
    },
    memory,
    probe::{MAX_PROBE_FLOWS, MAX_PROBES, ProbeFlow, ProbeTarget, Waiting},
    reason::REASON_SLOTS,
    service::{PortRange, ServiceBucket, ServiceDetail, VipBucket},
    slow::SlowWay,
    table::{Cursor, FragmentKey, Identity, Load, StickyKey, Tunnel},
    wide::{WideBucket, WideKey},
};

/// Memory for entries that there are.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Entries of both generations.
const fn both(one: u32) -> usize {
    (one * GENERATIONS) as usize
}

/// One generation after the other, as in all maps that generations share.
#[btf_map(name = "port_ranges")]
pub static PORT_RANGES: Array<PortRange, { both(MAX_PORT_RANGES) }, MMAPABLE> = Array::new();

#[btf_map(name = "details")]
pub static DETAILS: Array<ServiceDetail, { both(MAX_SERVICES) }, MMAPABLE> = Array::new();

#[btf_map(name = "tunnels")]
pub static TUNNELS: Array<Tunnel, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "loads")]
pub static LOADS: Array<Load, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

/// Whose element each service id and each backend id is. Only user space reads and writes it.
#[btf_map(name = "identities")]
pub static IDENTITIES: Array<Identity, { (MAX_BACKENDS + MAX_SERVICES) as usize }, MMAPABLE> =
    Array::new();

#[btf_map(name = "rings")]
pub static RINGS: Array<RingChunk, { both(RING_CHUNKS_PER_GENERATION) }, MMAPABLE> = Array::new();

#[btf_map(name = "cursors")]
pub static CURSORS: Array<Cursor, { MAX_SERVICES as usize }, MMAPABLE> = Array::new();

/// Chunks of all tables of IPv4 flows: see [`TableWord`](lb_common::control::TableWord).
#[btf_map(name = "flows")]
pub static FLOWS: ArrayOfMaps<
    Array<Bucket, { CHUNK_BUCKETS as usize }, MMAPABLE>,
    { FLOW_CHUNKS as usize },
> = ArrayOfMaps::new();

/// Chunks of all tables of wide flows.
#[btf_map(name = "wide_flows")]
pub static WIDE_FLOWS: ArrayOfMaps<
    Array<WideBucket, { CHUNK_BUCKETS as usize }, MMAPABLE>,
    { WIDE_CHUNKS as usize },
> = ArrayOfMaps::new();

#[btf_map(name = "half_open_tcp")]
pub static HALF_OPEN_TCP: Array<Bucket, { HALF_OPEN_BUCKETS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "half_open_udp")]
pub static HALF_OPEN_UDP: Array<Bucket, { HALF_OPEN_BUCKETS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "wide_open_tcp")]
pub static WIDE_OPEN_TCP: Array<WideBucket, { HALF_OPEN_BUCKETS as usize }, MMAPABLE> =
    Array::new();

#[btf_map(name = "wide_open_udp")]
pub static WIDE_OPEN_UDP: Array<WideBucket, { HALF_OPEN_BUCKETS as usize }, MMAPABLE> =
    Array::new();

/// Promoted flows whose bucket was full. The kernel's LRU: slow, and rarely asked.
#[btf_map(name = "spill")]
pub static SPILL: LruHashMap<u64, u64, { SPILL_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "wide_spill")]
pub static WIDE_SPILL: LruHashMap<WideKey, u64, { SPILL_FLOWS as usize }> = LruHashMap::new();

/// Where the later fragments of a datagram go: a flow value, with the service's id in bits 16-31.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, u64, { MAX_FRAGMENTED as usize }> = LruHashMap::new();

/// Clients that stick to a real server: a flow value.
#[btf_map(name = "sticky")]
pub static STICKY: LruHashMap<StickyKey, u64, { MAX_STICKY as usize }> = LruHashMap::new();

/// Those of which only one packet was seen.
#[btf_map(name = "sticky_new")]
pub static STICKY_NEW: LruHashMap<StickyKey, u64, { MAX_STICKY_NEW as usize }> = LruHashMap::new();

/// Theoretical arrival time of each source's next connection.
#[btf_map(name = "source_rates")]
pub static SOURCE_RATES: LruHashMap<Address, u64, { MAX_SOURCES as usize }> = LruHashMap::new();

/// [`SourceRule`](lb_common::protect::SourceRule) of IPv4 prefixes.
#[btf_map(name = "sources4")]
pub static SOURCES4: LpmTrie<[u8; 4], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();

/// The same of IPv6 prefixes.
#[btf_map(name = "sources6")]
pub static SOURCES6: LpmTrie<[u8; 16], u32, { MAX_PREFIXES as usize }> = LpmTrie::new();

/// By interface index modulo the number of slots.
#[btf_map(name = "vlan_sets")]
pub static VLAN_SETS: Array<VlanSet, { limits::VLAN_SETS as usize }, MMAPABLE> = Array::new();

/// [`vlan_key`](lb_common::control::vlan_key) of each VLAN that this host is in.
#[btf_map(name = "own_vlans")]
pub static OWN_VLANS: HashMap<u64, u32, { MAX_OWN_VLANS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map(name = "devices")]
pub static DEVICES: DevMapHash<{ MAX_INTERFACES as usize }> = DevMapHash::new();

#[btf_map(name = "backend_stats")]
pub static BACKEND_STATS: PerCpuArray<BackendCounters, { MAX_BACKENDS as usize }> =
    PerCpuArray::new();

/// Index: service id (0 where none was found) times [`REASON_SLOTS`] plus reason.
#[btf_map(name = "reasons")]
pub static REASONS: PerCpuArray<u64, { (MAX_SERVICES * REASON_SLOTS) as usize }> =
    PerCpuArray::new();

/// Where a capture reads.
#[btf_map(name = "events")]
pub static EVENTS: PerfEventArray = PerfEventArray::new();

/// Whom a probe's mark means.
#[btf_map(name = "probe_targets")]
pub static PROBE_TARGETS: Array<ProbeTarget, { MAX_PROBES as usize }, MMAPABLE> = Array::new();

/// Probes under way, and the address that each one's socket knows.
#[btf_map(name = "probe_flows")]
pub static PROBE_FLOWS: LruHashMap<ProbeFlow, Waiting, { MAX_PROBE_FLOWS as usize }> =
    LruHashMap::new();

/// The way through IPVS of each backend.
#[btf_map(name = "slow_ways")]
pub static SLOW_WAYS: Array<SlowWay, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

/// The address of a map that is one piece of memory, cast to what it holds.
macro_rules! address {
    ($memory:expr, $content:ty) => {{
        let address: *const u8;
        // SAFETY: one register is written. User space puts the map's address in place of the mark.
        unsafe {
            asm!("{0} = {1} ll", out(reg) address, const $memory.mark,
                options(nomem, nostack, preserves_flags))
        };
        address.cast::<$content>()
    }};
}

/// The control element.
#[inline(always)]
pub fn control() -> &'static Control {
    let control = address!(memory::CONTROL, Control);
    // SAFETY: the map holds one, as long as the program is loaded.
    unsafe { &*control }
}

/// A bucket of services of a generation, with a bound that the verifier can see.
#[inline(always)]
pub fn service_bucket(generation: u32, index: u32) -> &'static ServiceBucket {
    let first = address!(memory::SERVICES, ServiceBucket);
    // SAFETY: the map holds as many for each generation, of which there are 0 and 1. Two sums: the verifier of
    // Linux 6.1 knows no bounds of what the compiler makes of one.
    unsafe {
        let first = first.add(generation as usize * SERVICE_BUCKETS as usize);
        &*first.add(index as usize & (SERVICE_BUCKETS as usize - 1))
    }
}

/// The same of IPv6 addresses.
#[inline(always)]
pub fn vip_bucket(generation: u32, index: u32) -> &'static VipBucket {
    let first = address!(memory::VIPS, VipBucket);
    // SAFETY: the map holds as many for each generation, of which there are 0 and 1. Two sums: the verifier of
    // Linux 6.1 knows no bounds of what the compiler makes of one.
    unsafe {
        let first = first.add(generation as usize * VIP_BUCKETS as usize);
        &*first.add(index as usize & (VIP_BUCKETS as usize - 1))
    }
}

/// The element of a backend.
#[inline(always)]
pub fn backend(id: u16) -> &'static Backend {
    let first = address!(memory::BACKENDS, Backend);
    // SAFETY: the map holds one for each id below the limit, a power of two.
    unsafe { &*first.add(usize::from(id) & (MAX_BACKENDS as usize - 1)) }
}

/// The clock of flow expiry, in ticks. Jiffies are one load that the verifier inlines; even the
/// coarse clock is a call that costs a quarter of an established packet. It goes on when the daemon
/// does not.
#[inline(always)]
pub fn now(control: &Control) -> u32 {
    flow::tick_of(jiffies(), control.tick_scale)
}

/// What ticks are made of.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes no argument and always succeeds.
    unsafe { bpf_jiffies64() }
}
