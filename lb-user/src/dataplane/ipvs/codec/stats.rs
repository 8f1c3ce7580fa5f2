//! Counters of services and real servers in attributes (IPVS_STATS_ATTR_*). Pure.

use crate::dataplane::genetlink::attribute::{CodecError, attributes};

/// Counters, in either width, and rates a second that the kernel averages over some seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
    /// The same five, a second.
    pub rates: [u64; 5],
}

impl Stats {
    /// Reads IPVS_STATS_ATTR_*.
    pub fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut words = [0; 10];
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            let place = usize::from(attribute.kind).checked_sub(1);
            if let Some(word) = place.and_then(|place| words.get_mut(place)) {
                *word = attribute.u64()?;
            }
        }
        let [
            connections,
            in_packets,
            out_packets,
            in_bytes,
            out_bytes,
            ..,
        ] = words;
        let mut rates = [0; 5];
        rates.copy_from_slice(&words[5..]);
        Ok(Self {
            connections,
            in_packets,
            out_packets,
            in_bytes,
            out_bytes,
            rates,
        })
    }
}
