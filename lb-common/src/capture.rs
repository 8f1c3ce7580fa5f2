//! What the XDP program tells of a packet when a capture runs.

use core::mem::{offset_of, size_of};

use crate::Address;

/// Which packets a capture wants. Zero fields mean any.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The client's network.
    pub client: Address,
    /// Its mask; 0 is any client.
    pub client_mask: Address,
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
    /// Bit per outcome: see [`Event::outcome`]; 0 is any.
    pub outcomes: u64,
    /// Bytes kept of each packet.
    pub snap_length: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Filter {
    /// Whether the capture wants this packet.
    #[inline(always)]
    pub const fn wants(&self, event: &Event) -> bool {
        let client = event.client.0;
        let (net, mask) = (self.client.0, self.client_mask.0);
        client[0] & mask[0] == net[0]
            && client[1] & mask[1] == net[1]
            && (self.service == 0 || self.service == event.service as u32)
            && (self.backend == 0 || self.backend == event.backend as u32)
            && (self.outcomes == 0 || self.outcomes >> (event.outcome & 63) & 1 != 0)
    }
}

/// One packet, followed by its first bytes as they were when the program had finished.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Client, where the packet was read that far.
    pub client: Address,
    /// Bytes of the whole packet.
    pub length: u32,
    /// Bytes that follow.
    pub kept: u32,
    /// Interface it came in on.
    pub ifindex: u32,
    /// The number of a [`Reason`](crate::Reason), or [`Event::TRANSMITTED`] or [`Event::REDIRECTED`].
    pub outcome: u32,
    /// Service id, 0 when none.
    pub service: u16,
    /// Backend id, 0 when none.
    pub backend: u16,
    /// The XDP action.
    pub action: u32,
}

impl Event {
    /// Sent out of the interface that it came in on.
    pub const TRANSMITTED: u32 = 62;
    /// Sent out of another interface.
    pub const REDIRECTED: u32 = 63;

    /// Bytes of an event.
    pub const LENGTH: usize = size_of::<Event>();

    /// Reads an event as the program wrote it.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let half = |at: usize| {
            let mut half = [0; 4];
            half.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(half)
        };
        let quarter = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            time_ns: word(offset_of!(Event, time_ns)),
            client: Address([
                word(offset_of!(Event, client)),
                word(offset_of!(Event, client) + 8),
            ]),
            length: half(offset_of!(Event, length)),
            kept: half(offset_of!(Event, kept)),
            ifindex: half(offset_of!(Event, ifindex)),
            outcome: half(offset_of!(Event, outcome)),
            service: quarter(offset_of!(Event, service)),
            backend: quarter(offset_of!(Event, backend)),
            action: half(offset_of!(Event, action)),
        }
    }
}

const _: () = {
    assert!(core::mem::size_of::<Event>() == 48);
    assert!(core::mem::size_of::<Filter>() == 56);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_counts() {
        let event = Event {
            client: Address::v4(u32::from_ne_bytes([10, 0, 0, 9])),
            service: 3,
            backend: 4,
            outcome: Event::TRANSMITTED,
            ..Event::default()
        };
        let any = Filter::default();
        assert!(any.wants(&event));
        let network = |octets| {
            let mask = Address([u64::MAX, u64::MAX]).network(96 + 24);
            let client = Address::v4(u32::from_ne_bytes(octets)).network(96 + 24);
            Filter {
                client,
                client_mask: mask,
                ..any
            }
        };
        assert!(network([10, 0, 0, 0]).wants(&event));
        assert!(!network([10, 0, 1, 0]).wants(&event));
        assert!(
            Filter {
                service: 3,
                backend: 4,
                ..any
            }
            .wants(&event)
        );
        assert!(!Filter { service: 4, ..any }.wants(&event));
        assert!(!Filter { backend: 5, ..any }.wants(&event));
        assert!(!Filter { outcomes: 1, ..any }.wants(&event));
        assert!(
            Filter {
                outcomes: 1 << Event::TRANSMITTED,
                ..any
            }
            .wants(&event)
        );
    }
}
