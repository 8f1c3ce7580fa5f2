//! Every capacity of the data plane, each with its reason.

/// Virtual services. A service id is 16 bits of a flow's key and 0 means "no service".
pub const MAX_SERVICES: u32 = 4096;

/// Real servers, counted once per service that uses them. A backend id is 16 bits of a flow's
/// value; the per-CPU counters cost 32 bytes each, 512 KiB per CPU for the whole table.
pub const MAX_BACKENDS: u32 = 16_384;

/// Entries of a bucket of services: one cache line.
pub const SERVICE_WAYS: usize = 4;

/// Buckets of services in one generation: three entries for each service (itself, its address, its
/// address and protocol) fill them to less than half.
pub const SERVICE_BUCKETS: u32 = 8192;

/// Adjacent buckets that a service may be in: what a bucket has no room for goes to the next.
pub const SERVICE_PROBES: u32 = 4;

/// Buckets of IPv6 addresses in one generation, two entries each.
pub const VIP_BUCKETS: u32 = 4096;

/// Ranges of ports (a service of all ports is one) over all services of one generation.
pub const MAX_PORT_RANGES: u32 = 4096;

/// Ranges of ports of one address and protocol: they are searched one after the other.
pub const RANGES_PER_VIP: u32 = 32;

/// Scheduling slots in one [`RingChunk`](crate::RingChunk): one cache line.
pub const RING_CHUNK_SLOTS: u32 = 32;

/// Chunks that one generation's rings may fill: 524,288 slots, 1 MiB.
pub const RING_CHUNKS_PER_GENERATION: u32 = 16_384;

/// The longest ring of one service. Weights whose exact ring would be longer are approximated to
/// this length; 65,536 slots represent any weight to 0.002 % of the total.
pub const MAX_RING_SLOTS: u32 = 65_536;

/// Real servers that the schedulers `lc` and `wlc` compare for a new connection. The loop over them
/// is the longest of the program.
pub const MAX_COMPARED: u32 = 256;

/// Generations that exist side by side: the live one and the one being built.
pub const GENERATIONS: u32 = 2;

/// VRRP instances (mastership flags) that services may depend on; 0 is "always serving".
pub const MAX_ROLES: usize = 1024;

/// Interfaces that the program may send out of.
pub const MAX_INTERFACES: u32 = 64;

/// Places for the MAC addresses of this host, in a hash without collisions.
pub const LOCAL_MAC_SLOTS: usize = 256;

/// Slots for the VLANs of an interface, a power of two: the slot is the index modulo this.
pub const VLAN_SETS: u32 = 256;

/// VLANs of this host, over all interfaces that run the program. With more, frames of every VLAN are taken for
/// this host's.
pub const MAX_OWN_VLANS: u32 = 16_384;

/// Slots of one flow-table bucket: two adjacent cache lines.
pub const BUCKET_WAYS: usize = 8;

/// log2 of [`CHUNK_BUCKETS`].
pub const CHUNK_BITS: u32 = 13;

/// Buckets of one chunk of a table of promoted flows. All chunks have one size, so that the kernel
/// can inline the look-up; a table is a power of two of them. Smaller chunks cost time on every
/// packet (see docs/performance.md), larger ones memory.
pub const CHUNK_BUCKETS: u32 = 1 << CHUNK_BITS;

/// Slots of one chunk: 65,536 (1 MiB).
pub const CHUNK_SLOTS: u32 = CHUNK_BUCKETS * BUCKET_WAYS as u32;

/// Buckets of a half-open table, a power of two: 16,384 slots (256 KiB), small enough to stay in the
/// second-level cache while a flood of SYNs runs through it.
pub const HALF_OPEN_BUCKETS: u32 = 2048;

/// Chunks over all tables of IPv4 flows: two tables of [`MAX_FLOW_SLOTS`], and room for one of them to
/// move.
pub const FLOW_CHUNKS: u32 = 1_024;

/// Chunks over all tables of wide flows (IPv6, and services of several ports).
pub const WIDE_CHUNKS: u32 = 1_024;

/// Largest table of promoted flows: 16,777,216 slots.
pub const MAX_FLOW_SLOTS: u32 = 1 << 24;

/// Slots of the table of promoted flows unless configured: 262,144 (4 MiB), which serves 131,072
/// flows at the half-full mark up to which practically every flow finds a slot.
pub const DEFAULT_FLOW_SLOTS: u32 = 262_144;

/// Promoted flows that found no slot: at the half-full mark 0.8 % of the default table's flows, and
/// more while a table grows.
pub const SPILL_FLOWS: u32 = 16_384;

/// Datagrams in pieces whose later fragments are being waited for.
pub const MAX_FRAGMENTED: u32 = 16_384;

/// Clients that stick to a real server. The kernel takes the memory at once, about 100 bytes each.
pub const MAX_STICKY: u32 = 1 << 17;

/// Clients of which only one packet was seen, so that a flood cannot push out the others.
pub const MAX_STICKY_NEW: u32 = 16_384;

/// Sources whose rate is watched at once; memory as above.
pub const MAX_SOURCES: u32 = 1 << 16;

/// Prefixes in each of the two lists of sources.
pub const MAX_PREFIXES: u32 = 1 << 20;
