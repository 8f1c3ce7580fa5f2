//! Finds the compiled XDP program that the daemon embeds.

use std::{env, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = manifest.join("../target/bpf/lb-ebpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    if object.exists() {
        println!("cargo::rustc-env=LBD_EBPF_OBJECT={}", object.display());
    } else {
        println!(
            "cargo::error=the XDP program is not built yet; run `cargo xtask build-ebpf` first"
        );
    }
}
