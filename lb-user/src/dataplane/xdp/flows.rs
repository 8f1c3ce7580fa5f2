//! The flow tables as user space sees them: creation, sweeping, counting, listing. No system calls
//! once the tables are mapped.

use std::sync::atomic::Ordering;

use aya::maps::{ArrayOfMaps, MapData};
use lb_common::{
    flow::{Bucket, FlowKey, FlowTable, FlowValue},
    limits::{BUCKET_WAYS, HALF_OPEN_SLOTS},
};

use super::{mapped::MappedArray, object::map_error};
use crate::dataplane::DataPlaneError;

/// BPF_F_MMAPABLE | BPF_F_INNER_MAP, as the template in the program.
const FLAGS: u32 = 1 << 10 | 1 << 12;
/// A claim takes nanoseconds; a slot that is BUSY for 16 ticks, one second, lost its writer.
const BUSY_TICKS: u32 = 16;

/// All four tables, mapped.
pub struct Flows {
    tables: [MappedArray<Bucket>; 4],
}

/// One live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where it was found.
    pub table: FlowTable,
    /// Client and service.
    pub key: FlowKey,
    /// Backend and expiry.
    pub value: FlowValue,
}

impl Flow {
    /// Whether it counts as an active connection, in IPVS's sense.
    pub fn is_active(&self) -> bool {
        self.table == FlowTable::Tcp && !self.value.is_closing()
    }
}

impl Flows {
    /// Takes the tables that the outer map holds already, or makes new ones of `slots` slots.
    pub fn open(outer: &mut ArrayOfMaps<MapData>, slots: u32) -> Result<Self, DataPlaneError> {
        let mut tables = Vec::with_capacity(FlowTable::ALL.len());
        for table in FlowTable::ALL {
            let slots = match table {
                FlowTable::Tcp | FlowTable::Udp => slots,
                FlowTable::TcpHalfOpen | FlowTable::UdpHalfOpen => HALF_OPEN_SLOTS,
            };
            let buckets = slots / BUCKET_WAYS as u32;
            let kept = outer
                .get(&(table as u32), 0)
                .ok()
                .filter(|map: &MapData| map.info().is_ok_and(|info| info.max_entries() == buckets));
            let map = match kept {
                Some(map) => map,
                None => create(outer, table, buckets)?,
            };
            tables.push(
                MappedArray::new(map.fd(), buckets)
                    .map_err(|e| map_error("map a flow table", &e))?,
            );
        }
        let tables = <[_; 4]>::try_from(tables)
            .map_err(|_| map_error("map the flow tables", &"wrong number"))?;
        Ok(Self { tables })
    }

    /// Buckets - 1 of each table: what the program masks the hash with.
    pub fn masks(&self) -> [u32; 4] {
        std::array::from_fn(|i| self.tables[i].len() as u32 - 1)
    }

    /// Slots of the tables of promoted flows.
    pub fn slots(&self) -> u32 {
        (self.tables[0].len() * BUCKET_WAYS) as u32
    }

    /// Frees expired slots and calls `visit` for every live flow.
    pub fn sweep(&self, now: u32, mut visit: impl FnMut(Flow)) {
        self.walk(|table, array, bucket, way| {
            let key_word = array.word(bucket, way * 16);
            let value_word = array.word(bucket, way * 16 + 8);
            let value = FlowValue(value_word.load(Ordering::Acquire));
            if value.0 == 0 {
                return;
            }
            let abandoned = value.is_busy() && now.wrapping_sub(value.expires()) > BUSY_TICKS;
            if value.is_free(now) || abandoned {
                // Claim as the program does, so that no writer's work is undone.
                let busy = FlowValue::busy(now);
                let claimed = value_word
                    .compare_exchange(value.0, busy.0, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
                if claimed {
                    key_word.store(0, Ordering::Release);
                    value_word.store(0, Ordering::Release);
                }
            } else if !value.is_busy() {
                let key = FlowKey(key_word.load(Ordering::Acquire));
                visit(Flow { table, key, value });
            }
        });
    }

    /// Every live flow, nothing changed.
    pub fn list(&self, now: u32) -> Vec<Flow> {
        let mut flows = Vec::new();
        self.walk(|table, array, bucket, way| {
            let key = FlowKey(array.word(bucket, way * 16).load(Ordering::Acquire));
            let value = FlowValue(array.word(bucket, way * 16 + 8).load(Ordering::Acquire));
            let again = array.word(bucket, way * 16).load(Ordering::Acquire);
            if !value.is_busy() && !value.is_free(now) && key.0 == again {
                flows.push(Flow { table, key, value });
            }
        });
        flows
    }

    fn walk(&self, mut visit: impl FnMut(FlowTable, &MappedArray<Bucket>, usize, usize)) {
        for (table, array) in FlowTable::ALL.into_iter().zip(&self.tables) {
            for bucket in 0..array.len() {
                for way in 0..BUCKET_WAYS {
                    visit(table, array, bucket, way);
                }
            }
        }
    }
}

fn create(
    outer: &mut ArrayOfMaps<MapData>,
    table: FlowTable,
    buckets: u32,
) -> Result<MapData, DataPlaneError> {
    let name = match table {
        FlowTable::Tcp => "flows_tcp",
        FlowTable::Udp => "flows_udp",
        FlowTable::TcpHalfOpen => "half_open_tcp",
        FlowTable::UdpHalfOpen => "half_open_udp",
    };
    let array = aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let shape = aya_obj::Map::new_from_params(array, 4, size_of::<Bucket>() as u32, buckets, FLAGS);
    let map =
        MapData::create(shape, name, None).map_err(|e| map_error("create a flow table", &e))?;
    outer
        .set(table as u32, &map, 0)
        .map_err(|e| map_error("install a flow table", &e))?;
    Ok(map)
}
