//! What a chunk of a flow table looks like to the kernel: as the half-open table of the same shape.
//!
//! Kernels before 6.2 put a map into a map of maps only if both were made with type information
//! (BTF), or both without (kernel/bpf/syscall.c, `bpf_map_meta_equal`: the offset of a timer is
//! another error in each case). The object's own maps are made with it, and aya does not hand it
//! out, so it is asked for by the kernel's own calls.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::maps::MapData;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_info};

use crate::dataplane::{
    DataPlaneError,
    xdp::{
        object::map_error,
        syscall::{bpf, opened},
    },
};

/// Type, sizes, flags and type information of a map.
pub struct Template {
    info: bpf_map_info,
    btf: Option<OwnedFd>,
}

impl Template {
    /// That of an existing map.
    pub fn of(map: &MapData) -> Result<Self, DataPlaneError> {
        let fails = |e: io::Error| map_error("describe a flow table", &e);
        let info = describe(map).map_err(fails)?;
        let btf = match info.btf_id {
            0 => None,
            id => Some(btf(id).map_err(fails)?),
        };
        Ok(Self { info, btf })
    }

    /// Makes an array of this kind with `entries` elements.
    pub fn create(&self, name: &str, entries: u32) -> Result<MapData, DataPlaneError> {
        let fd = self
            .create_array(name, entries)
            .map_err(|e| map_error("create a flow table", &e))?;
        MapData::from_fd(fd).map_err(|e| map_error("create a flow table", &e))
    }

    fn create_array(&self, name: &str, entries: u32) -> io::Result<OwnedFd> {
        // SAFETY: zeros are valid for every member of the union.
        let mut attr: bpf_attr = unsafe { zeroed() };
        // SAFETY: as above; this is the member that BPF_MAP_CREATE reads.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = self.info.type_;
        create.key_size = self.info.key_size;
        create.value_size = self.info.value_size;
        create.max_entries = entries;
        create.map_flags = self.info.map_flags;
        // The last byte stays zero.
        for (to, from) in create.map_name[..15].iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        if let Some(btf) = &self.btf {
            create.btf_fd = btf.as_raw_fd().cast_unsigned();
            create.btf_key_type_id = self.info.btf_key_type_id;
            create.btf_value_type_id = self.info.btf_value_type_id;
        }
        opened(bpf_cmd::BPF_MAP_CREATE, &mut attr)
    }
}

fn describe(map: &MapData) -> io::Result<bpf_map_info> {
    // SAFETY: zeros are valid for it; the kernel fills as much as it knows.
    let mut info: bpf_map_info = unsafe { zeroed() };
    // SAFETY: zeros are valid for every member of the union.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.info.bpf_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn btf(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: zeros are valid for every member of the union.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    opened(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr)
}
