//! Flows that come from another data plane, or went to one.

use std::sync::atomic::Ordering;

use lb_common::flow::{self, FlowKey, FlowTable};

use super::{Flow, Flows, Homeless, grow};
use crate::dataplane::xdp::control::ControlElement;

impl Flow {
    /// One that the spill table holds.
    pub fn spilled(flow: Homeless, is_udp: bool) -> Self {
        match flow {
            Homeless::Narrow(key, value) => {
                let table = if is_udp {
                    FlowTable::Udp
                } else {
                    FlowTable::Tcp
                };
                Self::of_narrow(table, key, value)
            }
            Homeless::Wide(key, value) => {
                let table = if is_udp {
                    FlowTable::WideUdp
                } else {
                    FlowTable::WideTcp
                };
                Self::of_wide(table, key, value)
            }
        }
    }
}

impl Flows {
    /// Puts a flow into a table, unless it is there. Says whether it is there now: its bucket may be full.
    pub fn put(
        &self,
        table: FlowTable,
        flow: Homeless,
        control: &ControlElement,
        now: u32,
    ) -> bool {
        let secret = control.load().hash_secret;
        let (key, hash, wide, value) = match flow {
            Homeless::Narrow(key, value) => {
                (key.0, flow::hash(secret, FlowKey(key.0)), None, value)
            }
            Homeless::Wide(key, value) => {
                let print = key.fingerprint(secret);
                (print, print, Some(key), value)
            }
        };
        let place = &self.tables[table as usize];
        let (chunk, bucket) = if table.is_half_open() {
            (0, flow::half_open_bucket(hash))
        } else {
            (
                place.word.chunk(hash) - place.word.0 as u32,
                flow::bucket(hash),
            )
        };
        let chunk = &place.chunks[chunk as usize];
        grow::insert(chunk, bucket as usize, key, wide, value, now)
    }

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
