//! Chunks of flow tables and the map of maps that the program finds them in.

use std::sync::atomic::AtomicU64;

use aya::maps::{ArrayOfMaps, MapData};
use lb_common::{
    control::TableWord,
    flow::{Bucket, FlowTable},
    limits::{BUCKET_WAYS, CHUNK_BUCKETS},
    wide::{WideBucket, WideKey},
};

use super::template::Template;
use crate::dataplane::{
    DataPlaneError,
    xdp::{mapped::MappedArray, object::map_error},
};

/// One chunk, mapped.
pub enum Chunk {
    Narrow(MappedArray<Bucket>),
    Wide(MappedArray<WideBucket>),
}

impl Chunk {
    /// Maps an array of `buckets` buckets.
    pub fn map(map: &MapData, wide: bool, buckets: u32) -> Result<Self, DataPlaneError> {
        let failed = |e: rustix::io::Errno| map_error("map a flow table", &e);
        Ok(if wide {
            Chunk::Wide(MappedArray::new(map.fd(), buckets).map_err(failed)?)
        } else {
            Chunk::Narrow(MappedArray::new(map.fd(), buckets).map_err(failed)?)
        })
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        match self {
            Chunk::Narrow(array) => array.len(),
            Chunk::Wide(array) => array.len(),
        }
    }

    fn word(&self, bucket: usize, offset: usize) -> &AtomicU64 {
        match self {
            Chunk::Narrow(array) => array.word(bucket, offset),
            Chunk::Wide(array) => array.word(bucket, offset),
        }
    }

    /// Key or fingerprint of a slot.
    pub fn key(&self, bucket: usize, way: usize) -> &AtomicU64 {
        self.word(bucket, way * 16)
    }

    /// Value of a slot.
    pub fn value(&self, bucket: usize, way: usize) -> &AtomicU64 {
        self.word(bucket, way * 16 + 8)
    }

    /// The word `index` of the whole key beside a slot.
    pub fn beside(&self, bucket: usize, way: usize, index: usize) -> &AtomicU64 {
        self.word(
            bucket,
            BUCKET_WAYS * 16 + way * size_of::<WideKey>() + index * 8,
        )
    }

    /// The whole key beside a slot.
    pub fn wide_key(&self, bucket: usize, way: usize) -> Option<WideKey> {
        let Chunk::Wide(_) = self else { return None };
        let word = |index| {
            self.beside(bucket, way, index)
                .load(std::sync::atomic::Ordering::Acquire)
        };
        Some(WideKey {
            client: lb_common::Address([word(0), word(1)]),
            rest: word(2),
        })
    }
}

/// A table of chunks, mapped.
pub struct Table {
    pub table: FlowTable,
    pub word: TableWord,
    pub chunks: Vec<Chunk>,
}

/// The map of maps of one shape of keys.
pub struct Directory {
    outer: ArrayOfMaps<MapData>,
    template: Template,
    /// First chunk and number of chunks of what is in use.
    used: Vec<(u32, u32)>,
}

impl Directory {
    /// `template` is what every chunk is made after.
    pub fn new(outer: ArrayOfMaps<MapData>, template: Template) -> Self {
        Self {
            outer,
            template,
            // Index 0 is no table's.
            used: vec![(0, 1)],
        }
    }

    /// The table that an earlier daemon made, if all of it is there.
    pub fn adopt(&mut self, table: FlowTable, word: u64) -> Option<Table> {
        if word == 0 {
            return None;
        }
        let (first, count) = (word as u32, (word >> 32) as u32 + 1);
        let chunks = (first..first + count)
            .map(|index| {
                let map: MapData = self.outer.get(&index, 0).ok()?;
                Chunk::map(&map, table.is_wide(), CHUNK_BUCKETS).ok()
            })
            .collect::<Option<Vec<_>>>()?;
        self.used.push((first, count));
        Some(Table {
            table,
            word: TableWord(word),
            chunks,
        })
    }

    /// A new table.
    pub fn create(&mut self, table: FlowTable, count: u32) -> Result<Table, DataPlaneError> {
        let first = self
            .reserve(count)
            .ok_or(DataPlaneError::Exhausted("flow table"))?;
        let chunks = (first..first + count)
            .map(|index| self.install(table, index))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Table {
            table,
            word: TableWord::new(first, count),
            chunks,
        })
    }

    /// Finds `count` free indexes in a row.
    pub fn reserve(&mut self, count: u32) -> Option<u32> {
        self.used.sort_unstable();
        let capacity = self.outer.len();
        let mut first = 0;
        for (start, length) in &self.used {
            if first + count <= *start {
                break;
            }
            first = start + length;
        }
        if first + count > capacity {
            return None;
        }
        self.used.push((first, count));
        Some(first)
    }

    /// Gives the indexes of a table back.
    pub fn release(&mut self, word: TableWord) {
        self.used.retain(|(first, _)| *first != word.0 as u32);
    }

    /// Makes one chunk.
    pub fn install(&mut self, table: FlowTable, index: u32) -> Result<Chunk, DataPlaneError> {
        let wide = table.is_wide();
        let name = if wide { "wide_chunk" } else { "flow_chunk" };
        let map = self.template.create(name, CHUNK_BUCKETS)?;
        self.outer
            .set(index, &map, 0)
            .map_err(|e| map_error("install a flow table", &e))?;
        Chunk::map(&map, wide, CHUNK_BUCKETS)
    }
}
