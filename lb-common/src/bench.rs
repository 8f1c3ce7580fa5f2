//! What the benchmark's user space tells its wrapper program.

/// The traffic that the wrapper makes of one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Packets made so far.
    pub next: u32,
    /// Number of flows - 1, a power of two less one; all ones makes every packet a new flow.
    pub flow_mask: u32,
    /// Which program is called.
    pub target: u32,
    /// First client's address as loaded from the wire.
    pub client: u32,
    /// Bits of the address in which further clients may differ, as loaded from the wire.
    pub client_mask: u32,
    /// Destination MAC address, restored for each packet.
    pub destination: [u16; 3],
    /// Source MAC address, restored for each packet.
    pub source: [u16; 3],
    /// The first client's IPv4 header checksum. Without tags it is kept right for the others.
    pub checksum: u16,
    /// Each client has 2 to the power of this many ports: 0-14.
    pub port_bits: u16,
    /// Always 0.
    pub reserved: [u16; 2],
}

const _: () = assert!(core::mem::size_of::<Traffic>() == 40);
