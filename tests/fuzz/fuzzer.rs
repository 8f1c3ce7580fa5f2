//! The fuzzer: libFuzzer's main program around one of `targets`, which LBD_FUZZ_TARGET names.

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a finding is a panic"
)]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let name = std::env::var("LBD_FUZZ_TARGET").unwrap_or_default();
    match targets::TARGETS.iter().find(|target| target.name == name) {
        Some(target) => target.run,
        None => panic!("LBD_FUZZ_TARGET names no target"),
    }
}

fuzz_target!(|bytes: &[u8]| RUN.get_or_init(chosen)(bytes));
