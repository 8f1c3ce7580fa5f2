//! Every capacity of the data plane, each with its reason.

/// Virtual services. A service id is 16 bits of a flow's key and 0 means "no service".
pub const MAX_SERVICES: u32 = 4096;

/// Real servers, counted once per service that uses them. A backend id is 16 bits of a flow's
/// value; the per-CPU counters cost 32 bytes each, 512 KiB per CPU for the whole table.
pub const MAX_BACKENDS: u32 = 16_384;

/// Scheduling slots in one [`RingChunk`](crate::RingChunk): one cache line.
pub const RING_CHUNK_SLOTS: u32 = 32;

/// Chunks that one generation's rings may fill: 524,288 slots, 1 MiB.
pub const RING_CHUNKS_PER_GENERATION: u32 = 16_384;

/// The longest ring of one service. Weights whose exact ring would be longer are approximated to
/// this length; 65,536 slots represent any weight to 0.002 % of the total.
pub const MAX_RING_SLOTS: u32 = 65_536;

/// Generations that exist side by side: the live one and the one being built.
pub const GENERATIONS: u32 = 2;

/// VRRP instances (mastership flags) that services may depend on; 0 is "always serving".
pub const MAX_ROLES: usize = 1024;

/// Interfaces that the program may send out of.
pub const MAX_INTERFACES: u32 = 64;

/// Slots of one flow-table bucket: two adjacent cache lines.
pub const BUCKET_WAYS: usize = 8;

/// Slots of the table of promoted flows unless configured: 262,144 (4 MiB), which serves 131,072
/// flows at the half-full mark up to which practically every flow finds a slot.
pub const DEFAULT_FLOW_SLOTS: u32 = 262_144;

/// Promoted flows that found no slot: at the half-full mark 0.8 % of the default table's flows.
pub const SPILL_FLOWS: u32 = 4_096;

/// Slots of each half-open table: 16,384 (256 KiB), small enough to stay in the second-level cache
/// while a flood of SYNs runs through it.
pub const HALF_OPEN_SLOTS: u32 = 16_384;
