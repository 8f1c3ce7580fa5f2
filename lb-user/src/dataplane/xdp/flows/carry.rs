//! Flows that come from another data plane, or went to one.

use std::sync::atomic::Ordering;

use lb_common::flow::FlowTable;

use super::{Flow, Flows, Homeless, grow};
use crate::dataplane::carried::Phase;

impl Flow {
    /// One that the spill table holds.
    pub fn spilled(flow: Homeless, is_udp: bool) -> Self {
        let table = FlowTable::promoted(flow.is_wide(), is_udp);
        match flow {
            Homeless::Narrow(key, value) => Self::of_narrow(table, key, value),
            Homeless::Wide(key, value) => Self::of_wide(table, key, value),
        }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        match self.table {
            table if table.is_udp() => Phase::Datagrams,
            _ if self.value.is_closing() => Phase::Closing,
            table if table.is_half_open() => Phase::Opening,
            _ => Phase::Established,
        }
    }
}

impl Flows {
    /// Empties every table. No packet may be in the program.
    pub fn forget_all(&self) {
        let previous = self.growth.as_ref().and_then(grow::Growth::previous);
        for table in self.tables.iter().chain(previous) {
            table.walk(|chunk, bucket, way| {
                chunk.value(bucket, way).store(0, Ordering::Release);
                chunk.key(bucket, way).store(0, Ordering::Release);
            });
        }
    }
}
