//! The guest's kernel and its initial file system: programs of this machine with their libraries,
//! the kernel's network modules, and the test programs.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::machine::END;
use crate::run;

/// Programs that the tests start.
const PROGRAMS: [&str; 14] = [
    "ip",
    "tc",
    "bridge",
    "ethtool",
    "nsenter",
    "mount",
    "umount",
    "nginx",
    "curl",
    "socat",
    "tcpdump",
    "ipvsadm",
    "keepalived",
    "nft",
];
/// Programs of the module loader: one program under several names.
const MODULE_PROGRAMS: [&str; 2] = ["modprobe", "depmod"];
/// Libraries that are opened by name at run time.
const EXTRA_LIBRARIES: [&str; 2] = ["libnss_files.so.2", "libgcc_s.so.1"];
/// Folders of the kernel's modules that the guest gets.
const MODULES: [&str; 5] = ["net", "lib", "crypto", "drivers/net", "arch/x86/crypto"];

/// Where the guest's files are kept between runs.
fn home() -> PathBuf {
    run::target().join("guest")
}

/// The kernel's image, if it was fetched.
pub fn kernel() -> Option<PathBuf> {
    let list = fs::read_dir(home().join("kernel/boot")).ok()?;
    list.filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("vmlinuz-"))
}

/// Fetches the package that `meta` depends on, and unpacks it without installing it.
pub fn fetch_kernel(meta: &str) -> Result<()> {
    let text = run::output(Command::new("apt-cache").args(["depends", meta]))
        .with_context(|| format!("apt-cache does not know {meta}"))?;
    let package = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{meta} depends on no kernel"))?;
    let folder = home().join("package");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    // Its messages are about an account of its own that cannot read the folder.
    let fetched = Command::new("apt-get")
        .args(["--quiet=2", "download", package])
        .current_dir(&folder)
        .stderr(Stdio::null())
        .status()?;
    ensure!(fetched.success(), "apt-get download {package}: {fetched}");
    let file = fs::read_dir(&folder)?.next().context("nothing fetched")??;
    let unpacked = home().join("unpacking");
    let _ = fs::remove_dir_all(&unpacked);
    run::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(file.path())
            .arg(&unpacked),
    )?;
    fs::remove_dir_all(&folder)?;
    fs::rename(&unpacked, home().join("kernel"))?;
    Ok(())
}

/// What a guest finds in its folder.
pub struct Payload {
    /// Programs by name.
    programs: Vec<(String, PathBuf)>,
    /// Other files.
    files: Vec<PathBuf>,
}

impl Payload {
    /// The tests of a program whose name contains one of the words of `filter`, all of them if it has none.
    pub fn tests(&self, program: &str, filter: &str) -> Vec<String> {
        let found = self.programs.iter().find(|(name, _)| name == program);
        let list = found.and_then(|(_, path)| {
            let words = filter.split_whitespace();
            run::output(Command::new(path).arg("--list").args(words))
        });
        let list = list.unwrap_or_default();
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        names.map(str::to_owned).collect()
    }
}

/// The daemon and lbctl of a profile, the test programs, and what they load.
pub fn tests(profile: &str) -> Result<Payload> {
    run::cargo(&["build", "--quiet", "--package", "lb-user", "--bins"])?;
    let built = run::target().join(profile);
    let mut programs = vec![
        (String::from("lbd"), built.join("lbd")),
        (String::from("lbctl"), built.join("lbctl")),
    ];
    programs.extend(test_programs()?);
    let files = vec![run::target().join("bpf/lb-bench.o")];
    Ok(Payload { programs, files })
}

/// Builds the archives of the initial file system: a base that is kept while nothing in it
/// changes, and an overlay with `payload` and `script`, which the guest runs.
pub fn build(script: &str, payload: &Payload) -> Result<Vec<PathBuf>> {
    Ok(vec![overlay(script, payload)?, base()?])
}

/// Puts archives behind one another, as the kernel takes them.
pub fn join(archives: &[PathBuf]) -> Result<PathBuf> {
    let path = home().join("initrd");
    let mut file = fs::File::create(&path)?;
    for archive in archives {
        std::io::copy(&mut fs::File::open(archive)?, &mut file)?;
    }
    Ok(path)
}

fn base() -> Result<PathBuf> {
    let programs: Vec<PathBuf> = PROGRAMS
        .iter()
        .chain(&MODULE_PROGRAMS)
        .chain(&["busybox"])
        .map(|name| {
            run::find_program(name).with_context(|| format!("no {name}; run `cargo xtask setup`"))
        })
        .collect::<Result<_>>()?;
    let archive = home().join("base.cpio");
    let stamp = home().join("base.stamp");
    let key = stamp_of(&programs)?;
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(archive);
    }
    let tree = fresh("base")?;
    for folder in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "etc",
        "var/log/nginx",
        "var/lib/nginx",
        "usr/bin",
        "opt/lbd",
    ] {
        fs::create_dir_all(tree.join(folder))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("var/run", "/run"),
    ] {
        symlink(target, tree.join(link))?;
    }
    let applets = run::output(Command::new("busybox").arg("--list")).context("busybox --list")?;
    for applet in applets.lines() {
        symlink("busybox", tree.join("usr/bin").join(applet))?;
    }
    for program in &programs {
        let name = program.file_name().context("no name")?;
        let place = tree.join("usr/bin").join(name);
        let _ = fs::remove_file(&place);
        fs::copy(program, place)?;
    }
    libraries(&programs, &tree)?;
    for name in EXTRA_LIBRARIES {
        let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
        if path.exists() {
            install(&path, &tree)?;
        }
    }
    modules(&tree)?;
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n",
    )?;
    fs::write(
        tree.join("etc/group"),
        "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n",
    )?;
    fs::write(
        tree.join("etc/nsswitch.conf"),
        "passwd: files\ngroup: files\n",
    )?;
    pack(&tree, &archive)?;
    fs::write(stamp, key)?;
    Ok(archive)
}

fn overlay(script: &str, payload: &Payload) -> Result<PathBuf> {
    let tree = fresh("overlay")?;
    let folder = tree.join("opt/lbd");
    fs::create_dir_all(&folder)?;
    for (name, path) in &payload.programs {
        let stripped = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(folder.join(name))
            .arg(path)
            .status()
            .context("strip")?;
        ensure!(stripped.success(), "strip {}: {stripped}", path.display());
    }
    for file in &payload.files {
        let name = file.file_name().context("no name")?;
        fs::copy(file, folder.join(name)).with_context(|| file.display().to_string())?;
    }
    let paths: Vec<PathBuf> = payload
        .programs
        .iter()
        .map(|(_, path)| path.clone())
        .collect();
    libraries(&paths, &tree)?;
    fs::write(folder.join("script"), script)?;
    executable(&tree.join("init"), &init())?;
    let archive = home().join("overlay.cpio");
    pack(&tree, &archive)?;
    Ok(archive)
}

/// The test programs by name, freshly built.
fn test_programs() -> Result<Vec<(String, PathBuf)>> {
    let mut command = run::cargo_command(&[
        "test",
        "--quiet",
        "--package",
        "lb-tests",
        "--test",
        "guest",
        "--test",
        "cases",
        "--test",
        "instructions",
        "--no-run",
        "--message-format=json",
    ]);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the guest's tests do not compile");
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        // The package's other programs are built as well.
        if message["profile"]["test"] != true {
            continue;
        }
        let executable = message["executable"].as_str();
        if let (Some(path), Some(name)) = (executable, message["target"]["name"].as_str()) {
            programs.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    ensure!(programs.len() == 3, "cargo named {programs:?}");
    Ok(programs)
}

/// Runs a program, at most so many seconds; one that takes longer is shown with all that runs, and ended.
const LIMITED: &str = r#"
limited() {
    limit=$1; shift
    "$@" &
    program=$!
    (
        left=$limit
        while [ $left -gt 0 ]; do
            sleep 5
            [ -d /proc/$program ] || exit
            left=$((left - 5))
        done
        echo "$1 takes longer than $limit s; what runs and waits:"
        for process in /proc/[0-9]*; do
            [ -n "$(tr -d '\0' < $process/cmdline)" ] || continue
            echo "${process#/proc/}: $(tr '\0' ' ' < $process/cmdline | cut -c1-200)"
            for task in $process/task/*; do
                echo "    $(cat $task/comm): $(head -n 4 $task/stack | cut -d' ' -f2 | tr '\n' ' ')"
            done
        done 2>/dev/null
        kill -9 $program
    ) &
    wait $program
}"#;

fn init() -> String {
    format!(
        "#!/bin/busybox sh
export PATH=/usr/bin HOME=/root RUST_BACKTRACE=0 PROPTEST_CASES=16
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/netns /dev/shm
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
cd /opt/lbd
{LIMITED}
. /opt/lbd/script
echo '{END}' $status
sync
reboot -f
"
    )
}

/// Copies every library that `programs` need.
fn libraries(programs: &[PathBuf], tree: &Path) -> Result<()> {
    let mut found = BTreeSet::new();
    for program in programs {
        // A static program has none, and ldd says so by failing.
        let Some(text) = run::output(Command::new("ldd").arg(program)) else {
            continue;
        };
        for line in text.lines() {
            if line.contains("not found") {
                bail!("{}: {}", program.display(), line.trim());
            }
            let path = line.split_whitespace().find(|word| word.starts_with('/'));
            found.extend(path.map(PathBuf::from));
        }
    }
    for path in found {
        install(&path, tree)?;
    }
    Ok(())
}

/// Copies a file to the same place in the tree; old places are links there.
fn install(path: &Path, tree: &Path) -> Result<()> {
    let mut place = path.to_path_buf();
    for old in ["/lib", "/lib64", "/bin", "/sbin"] {
        if path.starts_with(old) {
            place = Path::new("/usr").join(path.strip_prefix("/")?);
        }
    }
    let place = tree.join(place.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("no folder")?)?;
    fs::copy(path, &place).with_context(|| path.display().to_string())?;
    Ok(())
}

fn modules(tree: &Path) -> Result<()> {
    let from = fs::read_dir(home().join("kernel/lib/modules"))?
        .next()
        .context("the kernel's package has no modules")??;
    let to = tree.join("usr/lib/modules").join(from.file_name());
    fs::create_dir_all(to.join("kernel"))?;
    for folder in MODULES {
        let target = to.join("kernel").join(folder);
        fs::create_dir_all(&target)?;
        let source = from.path().join("kernel").join(folder).join(".");
        run::run(Command::new("cp").arg("-r").arg(source).arg(target))?;
    }
    for file in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        let source = from.path().join(file);
        if source.exists() {
            fs::copy(source, to.join(file))?;
        }
    }
    let version = from.file_name();
    run::run(
        Command::new(run::find_program("depmod").context("no depmod")?)
            .arg("-b")
            .arg(tree.join("usr"))
            .arg(version)
            // It misses a list that this kernel's package does not have.
            .stderr(Stdio::null()),
    )
}

fn fresh(name: &str) -> Result<PathBuf> {
    let tree = home().join(name);
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(&tree)?;
    Ok(tree)
}

fn executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Packs a tree as the kernel unpacks it, and removes it.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let list = Command::new("find")
        .args([".", "-mindepth", "1"])
        .current_dir(tree)
        .stdout(Stdio::piped())
        .spawn()?;
    let packed = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(tree)
        .stdin(list.stdout.context("no output")?)
        .stdout(fs::File::create(archive)?)
        .status()
        .context("cpio")?;
    ensure!(packed.success(), "cpio: {packed}");
    Ok(fs::remove_dir_all(tree)?)
}

/// What the base is made of: every program with its size and time of change, and the kernel.
fn stamp_of(programs: &[PathBuf]) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let mut text = format!("{:?} {MODULES:?}\n", kernel());
    for program in programs {
        let data = fs::metadata(program)?;
        text += &format!("{} {} {}\n", program.display(), data.size(), data.mtime());
    }
    Ok(text)
}
