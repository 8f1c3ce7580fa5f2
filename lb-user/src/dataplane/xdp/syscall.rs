//! The system call bpf(2) for what aya does not hand out. One of its two unsafe doors; the other is the
//! shape of flow tables (`flows::template`), which goes through here.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};

/// For commands that return a new descriptor.
pub fn opened(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel just made it for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A command. What `attr` points to must live until the call returns.
pub fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is as large as said, and what it points to lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as u32,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of a BPF link.
pub struct LinkHandle(OwnedFd);

impl LinkHandle {
    /// That of a pinned link.
    pub fn of_pin(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: zeros are valid for every member of the union.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        opened(bpf_cmd::BPF_OBJ_GET, &mut attr).map(Self)
    }

    /// Whether the link still is on an interface: one that was detached, or whose interface is gone, is on
    /// none.
    pub fn is_attached(&self) -> io::Result<bool> {
        // SAFETY: zeros are valid for it; the kernel fills as much as it knows.
        let mut info: bpf_link_info = unsafe { zeroed() };
        // SAFETY: zeros are valid for every member of the union.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.info.bpf_fd = self.0.as_raw_fd().cast_unsigned();
        attr.info.info_len = size_of::<bpf_link_info>() as u32;
        attr.info.info = (&raw mut info) as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        // SAFETY: the member that the kernel writes for links of XDP; any bits are a number.
        Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex } != 0)
    }

    /// Takes the program off its interface before the call returns: the last reference to a link that was
    /// pinned goes a little later than its pin.
    pub fn detach(&self) -> io::Result<()> {
        // SAFETY: zeros are valid for every member of the union.
        let mut attr: bpf_attr = unsafe { zeroed() };
        attr.link_detach.link_fd = self.0.as_raw_fd().cast_unsigned();
        bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
    }
}
