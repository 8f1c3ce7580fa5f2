//! Every BPF map, with BTF key and value types, so that libbpf tools read them too.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE},
    btf_maps::{Array, ArrayOfMaps, DevMapHash, HashMap, LruHashMap, PerCpuArray},
    helpers::bpf_jiffies64,
    macros::btf_map,
};
use lb_common::{
    Backend, BackendCounters, Control, Reason, RingChunk, Service, ServiceKey,
    flow::Bucket,
    limits::{
        GENERATIONS, MAX_BACKENDS, MAX_INTERFACES, MAX_SERVICES, RING_CHUNKS_PER_GENERATION,
        SPILL_FLOWS,
    },
    reason::REASON_COUNT,
    table::Cursor,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Inner flow tables are created by the daemon in the size it wants; BPF_F_INNER_MAP lets sizes
/// differ.
const INNER: usize = (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize;

#[btf_map(name = "control")]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();

/// Both generations of every service.
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, Service, { (MAX_SERVICES * GENERATIONS) as usize }> =
    HashMap::new();

#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, MMAPABLE> = Array::new();

#[btf_map(name = "rings")]
pub static RINGS: Array<
    RingChunk,
    { (RING_CHUNKS_PER_GENERATION * GENERATIONS) as usize },
    MMAPABLE,
> = Array::new();

#[btf_map(name = "cursors")]
pub static CURSORS: Array<Cursor, { MAX_SERVICES as usize }, MMAPABLE> = Array::new();

/// Indexed by [`FlowTable`](lb_common::flow::FlowTable).
#[btf_map(name = "flows")]
pub static FLOWS: ArrayOfMaps<Array<Bucket, 1, INNER>, 4> = ArrayOfMaps::new();

/// Promoted flows whose bucket was full. The kernel's LRU: slow, and rarely asked.
#[btf_map(name = "spill")]
pub static SPILL: LruHashMap<u64, u64, { SPILL_FLOWS as usize }> = LruHashMap::new();

#[btf_map(name = "devices")]
pub static DEVICES: DevMapHash<{ MAX_INTERFACES as usize }> = DevMapHash::new();

#[btf_map(name = "backend_stats")]
pub static BACKEND_STATS: PerCpuArray<BackendCounters, { MAX_BACKENDS as usize }> =
    PerCpuArray::new();

#[btf_map(name = "reasons")]
pub static REASONS: PerCpuArray<u64, { REASON_COUNT as usize }> = PerCpuArray::new();

/// The control element, once the daemon has filled it.
#[inline(always)]
pub fn control() -> Result<&'static Control, Reason> {
    match CONTROL.get(0) {
        Some(control) if control.ready != 0 => Ok(control),
        _ => Err(Reason::NotReady),
    }
}

/// The clock of flow expiry, in ticks. Jiffies are one load that the verifier inlines; even the
/// coarse clock is a call that costs a quarter of an established packet. It goes on when the daemon
/// does not.
#[inline(always)]
pub fn now(control: &Control) -> u32 {
    // SAFETY: the helper takes no argument and always succeeds.
    (unsafe { bpf_jiffies64() } >> (control.tick_shift & 31)) as u32
}
