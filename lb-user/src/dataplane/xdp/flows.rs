//! The flow tables as user space sees them: creation, sweeping, counting, listing. No system calls
//! once the tables are mapped. `grow` makes them larger while packets flow.

mod carry;
mod chunks;
mod grow;
mod template;

use std::{net::IpAddr, sync::atomic::Ordering};

use aya::maps::{ArrayOfMaps, MapData};
use lb_common::{
    Address,
    control::TableWord,
    flow::{FlowKey, FlowTable, FlowValue},
    limits::{BUCKET_WAYS, CHUNK_SLOTS},
    wide::WideKey,
};

use self::chunks::{Directory, Table};
pub use self::{
    chunks::Chunk,
    grow::{Growth, Homeless},
    template::Template,
};
use super::control::ControlElement;
use crate::{
    dataplane::DataPlaneError,
    model::{DataplaneConfig, address::from_wire},
};

/// A claim takes nanoseconds; a slot that is BUSY for 16 ticks, one second, lost its writer.
const BUSY_TICKS: i32 = 16;

/// All tables, mapped.
pub struct Flows {
    tables: Vec<Table>,
    narrow: Directory,
    wide: Directory,
    growth: Option<Growth>,
    max_slots: u32,
    /// Flows that the last sweep left in each table.
    live: [u32; FlowTable::ALL.len()],
}

/// One live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where it was found.
    pub table: FlowTable,
    /// Client.
    pub client: IpAddr,
    /// Client port.
    pub client_port: u16,
    /// Destination port; 0 where the service has only one.
    pub vip_port: u16,
    /// Service id.
    pub service: u16,
    /// Backend and expiry.
    pub value: FlowValue,
}

impl Flow {
    /// Whether it counts as an active connection, in IPVS's sense: TCP from the first SYN until one side
    /// closes (`tcp_state_active_table` of ip_vs_proto_tcp.c), UDP never, SCTP while it is established
    /// (`set_sctp_state` of ip_vs_proto_sctp.c).
    pub fn is_active(&self, is_sctp: bool) -> bool {
        let opens = is_sctp && self.table.is_half_open();
        !self.table.is_udp() && !self.value.is_closing() && !opens
    }

    fn of_narrow(table: FlowTable, key: FlowKey, value: FlowValue) -> Self {
        Self {
            table,
            client: from_wire(Address::v4(key.client_be())),
            client_port: u16::from_be(key.port_be()),
            vip_port: 0,
            service: key.service(),
            value,
        }
    }

    fn of_wide(table: FlowTable, key: WideKey, value: FlowValue) -> Self {
        Self {
            table,
            client: from_wire(key.client),
            client_port: u16::from_be(key.port_be()),
            vip_port: u16::from_be(key.vport_be()),
            service: key.service(),
            value,
        }
    }
}

impl Flows {
    /// Takes the tables that an earlier daemon left (`words` says where), or makes new ones.
    pub fn open(
        narrow: ArrayOfMaps<MapData>,
        wide: ArrayOfMaps<MapData>,
        mut half_open: impl FnMut(FlowTable) -> Result<(Chunk, Template), DataPlaneError>,
        words: [u64; FlowTable::ALL.len()],
        previous: [u64; FlowTable::ALL.len()],
        config: &DataplaneConfig,
    ) -> Result<Self, DataPlaneError> {
        let (tcp, narrow_shape) = half_open(FlowTable::TcpHalfOpen)?;
        let (udp, _) = half_open(FlowTable::UdpHalfOpen)?;
        let (wide_tcp, wide_shape) = half_open(FlowTable::WideTcpHalfOpen)?;
        let (wide_udp, _) = half_open(FlowTable::WideUdpHalfOpen)?;
        // In the order of `ALL`.
        let mut half_open = [tcp, udp, wide_tcp, wide_udp].into_iter();
        let mut narrow = Directory::new(narrow, narrow_shape);
        let mut wide = Directory::new(wide, wide_shape);
        let mut tables = Vec::with_capacity(words.len());
        for (table, word) in FlowTable::ALL.into_iter().zip(words) {
            if table.is_half_open() {
                tables.push(Table {
                    table,
                    word: TableWord(0),
                    chunks: half_open.next().into_iter().collect(),
                });
                continue;
            }
            let directory = if table.is_wide() {
                &mut wide
            } else {
                &mut narrow
            };
            let chunks = first_chunks(table, config.flow_slots);
            tables.push(match directory.adopt(table, word) {
                Some(adopted) => adopted,
                None => directory.create(table, chunks)?,
            });
        }
        // A daemon that died while a table grew left two.
        let growth = FlowTable::ALL
            .into_iter()
            .zip(previous)
            .find_map(|(table, word)| {
                let directory = if table.is_wide() {
                    &mut wide
                } else {
                    &mut narrow
                };
                Some(Growth::Moving(directory.adopt(table, word)?))
            });
        Ok(Self {
            tables,
            narrow,
            wide,
            growth,
            max_slots: config.max_flow_slots,
            live: [0; FlowTable::ALL.len()],
        })
    }

    /// Where each table lies.
    pub fn words(&self) -> [u64; FlowTable::ALL.len()] {
        std::array::from_fn(|index| self.tables[index].word.0)
    }

    /// Slots of each table.
    pub fn slots(&self) -> [u32; FlowTable::ALL.len()] {
        std::array::from_fn(|index| {
            let buckets: usize = self.tables[index]
                .chunks
                .iter()
                .map(chunks::Chunk::buckets)
                .sum();
            (buckets * BUCKET_WAYS) as u32
        })
    }

    /// Flows that the last sweep left in each table.
    pub fn live(&self) -> [u32; FlowTable::ALL.len()] {
        self.live
    }

    /// Frees expired slots, calls `visit` for every live flow, and lets tables grow that are more
    /// than half full. Flows that find no room then are given to `spill`. Says whether a table has grown.
    pub fn sweep(
        &mut self,
        control: &ControlElement,
        now: u32,
        mut visit: impl FnMut(Flow),
        spill: impl FnMut(Homeless),
    ) -> bool {
        let mut live = [0_u32; FlowTable::ALL.len()];
        for table in &self.tables {
            table.sweep(now, |flow| {
                live[flow.table as usize] += 1;
                visit(flow);
            });
        }
        if let Some(previous) = self.growth.as_ref().and_then(Growth::previous) {
            previous.sweep(now, &mut visit);
        }
        self.live = live;
        self.grow(control, &live, now, spill)
    }

    /// Every live flow that `wanted` wants, nothing changed.
    pub fn list(&self, now: u32, mut wanted: impl FnMut(&Flow) -> bool) -> Vec<Flow> {
        let mut flows = Vec::new();
        let previous = self.growth.as_ref().and_then(Growth::previous);
        for table in self.tables.iter().chain(previous) {
            table.walk(|chunk, bucket, way| {
                let value = FlowValue(chunk.value(bucket, way).load(Ordering::Acquire));
                // Most slots are empty.
                if value.0 != 0
                    && !value.is_busy()
                    && !value.is_free(now)
                    && let Some(flow) = table.read(chunk, bucket, way, value)
                    && wanted(&flow)
                {
                    flows.push(flow);
                }
            });
        }
        flows
    }
}

impl Table {
    fn walk(&self, mut visit: impl FnMut(&chunks::Chunk, usize, usize)) {
        for chunk in &self.chunks {
            for bucket in 0..chunk.buckets() {
                for way in 0..BUCKET_WAYS {
                    visit(chunk, bucket, way);
                }
            }
        }
    }

    /// The flow of a slot whose value was read before; `None` if it changed meanwhile.
    fn read(
        &self,
        chunk: &chunks::Chunk,
        bucket: usize,
        way: usize,
        value: FlowValue,
    ) -> Option<Flow> {
        let key = chunk.key(bucket, way).load(Ordering::Acquire);
        let flow = match chunk.wide_key(bucket, way) {
            Some(key) => Flow::of_wide(self.table, key, value),
            None => Flow::of_narrow(self.table, FlowKey(key), value),
        };
        let again = FlowValue(chunk.value(bucket, way).load(Ordering::Acquire));
        // Used again in between, the slot would give one flow's key with another's backend.
        let same = !again.is_busy()
            && again.backend() == value.backend()
            && chunk.key(bucket, way).load(Ordering::Acquire) == key;
        (same && key != 0).then_some(flow)
    }

    fn sweep(&self, now: u32, mut visit: impl FnMut(Flow)) {
        self.walk(|chunk, bucket, way| {
            let value_word = chunk.value(bucket, way);
            let value = FlowValue(value_word.load(Ordering::Acquire));
            if value.0 == 0 {
                return;
            }
            // Our clock may be a tick behind the program's.
            let busy_for = now.wrapping_sub(value.expires()).cast_signed();
            let abandoned = value.is_busy() && busy_for > BUSY_TICKS;
            if value.is_free(now) || abandoned {
                // Claim as the program does, so that no writer's work is undone.
                let busy = FlowValue::busy(now);
                let claimed = value_word
                    .compare_exchange(value.0, busy.0, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
                if claimed {
                    chunk.key(bucket, way).store(0, Ordering::Release);
                    value_word.store(0, Ordering::Release);
                }
            } else if !value.is_busy()
                && let Some(flow) = self.read(chunk, bucket, way, value)
            {
                visit(flow);
            }
        });
    }
}

/// Chunks that a table begins with: those of UDP and of wide keys a quarter of what TCP has.
fn first_chunks(table: FlowTable, slots: u32) -> u32 {
    let full = (slots / CHUNK_SLOTS).max(1);
    match table {
        FlowTable::Tcp => full,
        _ => (full / 4).max(1),
    }
}
