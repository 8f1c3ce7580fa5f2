//! Maps that are one piece of memory (see `lb_common::memory`): made here and not by the loader, because the program
//! has their addresses and the kernel wants to know them before it sees the program.
//!
//! aya could make them as well (sections of global data), but not so that they can be mapped, and it would
//! overwrite what an earlier daemon left in pinned ones.

use std::collections::HashMap;

use aya::maps::{Map, MapData, MapError};
use aya_obj::generated::{BPF_F_MMAPABLE, BPF_PSEUDO_MAP_VALUE, bpf_map_type};
use lb_common::memory::{ALL, Memory};

use super::{
    maps::map_data,
    object::{map_error, misfit},
    pins::Pins,
};
use crate::dataplane::DataPlaneError;

/// Bytes of an instruction. One that loads 64 bits is two: operation, register, offset and the low half, then zeros and
/// the high half.
const INSTRUCTION: usize = 8;
const LOAD: usize = 2 * INSTRUCTION;
/// `BPF_LD | BPF_DW | BPF_IMM`.
const LOAD_64: u8 = 0x18;

/// All of them, by name: new ones, or those that an earlier daemon left pinned.
pub fn open(pins: Option<&Pins>) -> Result<HashMap<&'static str, Map>, DataPlaneError> {
    let mut maps = HashMap::new();
    for memory in ALL {
        let data = one(memory, pins).map_err(|e| {
            super::object::errno(&e)
                .filter(|number| *number == libc::EPERM)
                .map_or_else(
                    || map_error(&format!("make map {}", memory.name), &e),
                    |_| DataPlaneError::NoPermission("load BPF maps and programs"),
                )
        })?;
        let map = Map::Array(data);
        if let Some(problem) = misfit(memory.name, &map) {
            return Err(DataPlaneError::Load(problem));
        }
        maps.insert(memory.name, map);
    }
    Ok(maps)
}

fn one(memory: Memory, pins: Option<&Pins>) -> Result<MapData, MapError> {
    let path = pins.map(|pins| pins.path(memory.name));
    if let Some(path) = path.as_ref().filter(|path| path.exists()) {
        return MapData::from_pin(path);
    }
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let definition = aya_obj::Map::new_from_params(array, 4, memory.bytes, 1, BPF_F_MMAPABLE);
    let data = MapData::create(definition, memory.name, None)?;
    if let Some(path) = path {
        data.pin(path).map_err(|error| MapError::PinError {
            name: Some(memory.name.to_owned()),
            error,
        })?;
    }
    Ok(data)
}

/// The object with the maps' addresses in place of their marks.
pub fn addressed(
    object: &[u8],
    maps: &HashMap<&'static str, Map>,
) -> Result<Vec<u8>, DataPlaneError> {
    use std::os::fd::{AsFd, AsRawFd};
    let mut object = object.to_vec();
    for memory in ALL {
        let data = maps.get(memory.name).and_then(map_data);
        let Some(data) = data else { continue };
        let number = data.fd().as_fd().as_raw_fd();
        if address(&mut object, memory.mark, number) == 0 {
            let problem = format!("the object does not use map `{}`", memory.name);
            return Err(DataPlaneError::Load(problem));
        }
    }
    Ok(object)
}

/// Makes every instruction that loads `mark` load the address of the element of the map with this descriptor. Says
/// how many there were.
fn address(object: &mut [u8], mark: u64, descriptor: i32) -> usize {
    let mark = mark.to_le_bytes();
    let mut found = 0;
    for start in (0..object.len().saturating_sub(LOAD - 1)).step_by(INSTRUCTION) {
        let load = &mut object[start..start + LOAD];
        // The upper half of the register byte is the kind of the number: none yet.
        let is_mark = load[0] == LOAD_64
            && load[1] < 0x10
            && load[2..4] == [0; 2]
            && load[4..8] == mark[..4]
            && load[8..12] == [0; 4]
            && load[12..] == mark[4..];
        if is_mark {
            load[1] |= (BPF_PSEUDO_MAP_VALUE as u8) << 4;
            load[4..8].copy_from_slice(&descriptor.to_le_bytes());
            load[12..].fill(0);
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::xdp::object::OBJECT;

    const MARK: u64 = 0x1122_3344_5566_7788;

    #[test]
    fn a_load_of_a_mark_becomes_one_of_an_address() {
        let load = |register: u8, low: u32, high: u32| {
            let mut bytes = vec![LOAD_64, register, 0, 0];
            bytes.extend(low.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(high.to_le_bytes());
            bytes
        };
        let (low, high) = (0x5566_7788, 0x1122_3344);
        let other = load(3, low, high + 1);
        let mut object = [load(3, low, high), other.clone(), load(7, low, high)].concat();
        assert_eq!(address(&mut object, MARK, 9), 2);
        let wanted = [load(0x23, 9, 0), other, load(0x27, 9, 0)].concat();
        assert_eq!(object, wanted);
        assert_eq!(address(&mut object, MARK, 9), 0, "each once");
    }

    /// Marks are told from everything else, and the program has those of all maps.
    #[test]
    fn the_program_has_every_mark() {
        for memory in ALL {
            let mut object = OBJECT.to_vec();
            let loads = address(&mut object, memory.mark, 9);
            let words = OBJECT
                .windows(4)
                .filter(|word| **word == memory.mark.to_le_bytes()[..4])
                .count();
            assert!(loads > 0, "{}", memory.name);
            assert_eq!(loads, words, "{}", memory.name);
        }
    }
}
