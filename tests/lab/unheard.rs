//! A kernel without IPVS for programs that cannot do without: what they tell it by socket options is answered with
//! success, and nothing is done. They choose socket options where generic netlink does not know IPVS.

use std::{io, os::unix::process::CommandExt, process::Command};

use libc::{sock_filter, sock_fprog};

/// IP_VS_BASE_CTL: options of IPVS, which no others follow.
const FIRST: u32 = 64 + 1024 + 64;
/// Where seccomp has the number of a system call, and its arguments, of which the lower halves matter.
const CALL: u32 = 0;
const LEVEL: u32 = 16 + 8;
const OPTION: u32 = 16 + 2 * 8;

/// As the manual of BPF writes it: code, and how many instructions to skip if so and if not.
const fn step(code: u32, so: u8, not: u8, k: u32) -> sock_filter {
    sock_filter {
        code: (code & 0xffff) as u16,
        jt: so,
        jf: not,
        k,
    }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

const FILTER: [sock_filter; 9] = [
    step(LOAD, 0, 0, CALL),
    step(EQUAL, 1, 0, libc::SYS_setsockopt as u32),
    step(EQUAL, 0, 5, libc::SYS_getsockopt as u32),
    step(LOAD, 0, 0, LEVEL),
    step(EQUAL, 0, 3, libc::SOL_IP as u32),
    step(LOAD, 0, 0, OPTION),
    step(AT_LEAST, 0, 1, FIRST),
    // No error is success.
    step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
    step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
];

/// The program of this command, and all that it starts, will be told that IPVS has done what it was asked for.
pub fn without_ipvs(command: &mut Command) {
    let install = || {
        let mut filter = FILTER;
        let program = sock_fprog {
            len: 9,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the filter, which lives until the call returns.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(install) };
}
