//! The XDP program: finding or installing a toolchain, and compiling.
//!
//! Two toolchains can do it: a rustc whose sysroot has a prebuilt `core` for BPF (Debian's
//! packages), or rustup's nightly with the library's source. Either needs a bpf-linker built
//! against the same LLVM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{apt, run};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// Addresses in packets are aligned to two bytes. From this version on LLVM can be told that the machine
/// loads them whole all the same; before, it puts them together from halves.
const MISALIGNED_SINCE: u32 = 22;
/// Debian's names for a compiler and its BPF library, newest first.
const PACKAGES: [[&str; 2]; 2] = [
    ["rustc-web", "libstd-rust-web-dev-bpf"],
    ["rustc", "libstd-rust-dev-bpf"],
];

/// A compiler for the XDP program.
pub struct Toolchain {
    rustc: PathBuf,
    /// `core` is compiled from source.
    build_std: bool,
    /// Major version of its LLVM.
    llvm: u32,
}

/// Finds a toolchain with its linker; installs what is missing where that is possible.
pub fn toolchain() -> Result<Toolchain> {
    let toolchain = match find() {
        Some(toolchain) => toolchain,
        None => {
            install_compiler()?;
            find().context("the installed rustc has no core for BPF")?
        }
    };
    install_linker(&toolchain)?;
    Ok(toolchain)
}

/// Compiles the program to `target/bpf/lb-ebpf.o`, and the benchmark's beside it.
pub fn build() -> Result<()> {
    let toolchain = toolchain()?;
    run::stage("compiling the XDP program", || compile(&toolchain))
}

fn compile(toolchain: &Toolchain) -> Result<()> {
    let folder = run::target().join("bpf");
    let mut flags = vec![
        "-Clinker=bpf-linker",
        "-Clink-arg=--btf",
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
    ];
    if toolchain.llvm >= MISALIGNED_SINCE {
        flags.push("-Clink-arg=--cpu-features=+allows-misaligned-mem-access");
    }
    let mut command = run::cargo_command(&[
        "build",
        "--quiet",
        "--locked",
        "--package",
        "lb-ebpf",
        "--profile",
        "bpf",
        "--target",
        TARGET,
    ]);
    if toolchain.build_std {
        command.arg("-Zbuild-std=core");
    }
    let mut path = vec![tools().join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    command
        .env("RUSTC", &toolchain.rustc)
        // aya-ebpf uses the unstable BPF assembly, on any channel.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Whatever the environment says: of several pieces LLVM makes another program, which no test has loaded.
        .env("CARGO_INCREMENTAL", "0")
        .env("PATH", std::env::join_paths(path)?)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    run::run(&mut command)?;
    for name in ["lb-ebpf", "lb-bench"] {
        let built = folder.join(TARGET).join("bpf").join(name);
        let object = folder.join(name).with_extension("o");
        let bytes = fs::read(&built).with_context(|| built.display().to_string())?;
        // An unchanged object keeps its time, and the daemon is not compiled again for it.
        if fs::read(&object).ok().as_deref() != Some(&bytes) {
            fs::write(&object, bytes)?;
        }
    }
    Ok(())
}

fn find() -> Option<Toolchain> {
    let prebuilt = ["/usr/bin/rustc", "rustc"].iter().find_map(|rustc| {
        let sysroot = sysroot(Command::new(rustc).current_dir("/"))?;
        let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        library.is_dir().then(|| PathBuf::from(rustc))
    });
    if let Some(rustc) = prebuilt {
        let llvm = llvm_version(&rustc)?;
        return Some(Toolchain {
            rustc,
            build_std: false,
            llvm,
        });
    }
    let nightly =
        run::output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))?;
    let rustc = PathBuf::from(nightly.trim());
    let source = sysroot(&mut Command::new(&rustc))?.join("lib/rustlib/src/rust/library/core");
    let llvm = llvm_version(&rustc)?;
    source.is_dir().then_some(Toolchain {
        rustc,
        build_std: true,
        llvm,
    })
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    Some(PathBuf::from(
        run::output(rustc.args(["--print", "sysroot"]))?.trim(),
    ))
}

fn llvm_version(rustc: &Path) -> Option<u32> {
    let text = run::output(Command::new(rustc).current_dir("/").arg("-vV"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

fn install_compiler() -> Result<()> {
    let by_rustup = "rustup toolchain install nightly --component rust-src";
    if run::find_program("apt-get").is_none() {
        bail!("no Rust compiler with `core` for {TARGET}; run: {by_rustup}");
    }
    apt::update()?;
    let available = PACKAGES
        .iter()
        .find(|names| names.iter().all(|name| apt::is_available(name)));
    // Without root the package lists may never have been fetched: name the usual packages then.
    let Some(packages) = available.or((!run::is_root()).then_some(&PACKAGES[0])) else {
        bail!("this system has no package with `core` for {TARGET}; run: {by_rustup}");
    };
    apt::install(&packages.map(str::to_owned))
}

fn tools() -> PathBuf {
    run::target().join("tools")
}

/// Installs bpf-linker under `target/`, once for each LLVM.
fn install_linker(toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm;
    let stamp = tools().join(format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm}"));
    if stamp.exists() && tools().join("bin/bpf-linker").exists() {
        return Ok(());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("include/llvm-c").is_dir() {
        apt::install(&[format!("llvm-{llvm}-dev")])?;
    }
    run::stage(
        &format!("building bpf-linker {LINKER_VERSION} against LLVM {llvm}"),
        || {
            let root = tools();
            let feature = format!("llvm-{llvm}");
            let arguments = [
                "install",
                "--quiet",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--no-default-features",
                "--features",
                &feature,
                "--force",
                "--root",
            ];
            let mut command = run::cargo_command(&arguments);
            command
                .arg(&root)
                .current_dir("/")
                .env("LLVM_PREFIX", &prefix)
                .env("CARGO_TARGET_DIR", root.join("build"));
            run::run(&mut command).context("bpf-linker does not build")?;
            let _ = fs::remove_dir_all(root.join("build"));
            Ok(fs::write(&stamp, "")?)
        },
    )
}
