//! QEMU: boots the guest, passes on what it prints, and ends one that hangs.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::image;

/// Seconds after which a guest is ended. A full run takes a few minutes under emulation.
const LIMIT_S: u32 = 2000;
/// A guest that prints nothing for this long hangs: it says each [`ALIVE_S`] that it lives.
const SILENCE: Duration = Duration::from_secs(240);
/// In seconds of the guest's clock.
pub const ALIVE_S: u32 = 30;
/// What a guest prints to show that its kernel runs.
pub const ALIVE: &str = "the guest lives";
/// What a guest prints last, with its status.
pub const END: &str = "the guest ends with status";

/// As fast as emulation goes.
pub const TWO_PROCESSORS: [&str; 4] = ["-smp", "2", "-accel", "tcg,thread=multi"];
/// One nanosecond of the guest's clock is one instruction: what it measures does not depend on this
/// machine.
pub const COUNTING: [&str; 6] = [
    "-smp",
    "1",
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
];

/// A guest that did not come to its end.
#[derive(Debug)]
pub struct Died(String);

impl std::fmt::Display for Died {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the guest did not come to its end: {}", self.0)
    }
}

impl std::error::Error for Died {}

/// Boots, prints what the guest prints, and returns its verdict. An error is [`Died`] if it has none.
pub fn boot(overlay: &[PathBuf], machine: &[&str], line: &mut impl FnMut(&str)) -> Result<()> {
    let mut child = start(overlay, machine)?;
    let stdout = child.stdout.take().context("no output")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for text in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut verdict = None;
    let mut hangs = false;
    loop {
        let text = match lines.recv_timeout(SILENCE) {
            Ok(text) => text,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if hangs => break,
            Err(RecvTimeoutError::Timeout) => {
                hangs = true;
                // It passes the signal on to QEMU.
                let _ = Command::new("kill").arg(child.id().to_string()).status();
                continue;
            }
        };
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\r');
        if let Some(status) = text.strip_prefix(END) {
            verdict = Some(status.trim() == "0");
        } else if text != ALIVE {
            println!("{text}");
            line(text);
        }
    }
    let output = child.wait_with_output()?;
    let _ = reader.join();
    match verdict {
        Some(true) => Ok(()),
        Some(false) => bail!("tests failed in the guest"),
        None => {
            let why = if hangs {
                format!("nothing for {} s", SILENCE.as_secs())
            } else {
                format!("dead, or longer than {LIMIT_S} s ({})", output.status)
            };
            let words = String::from_utf8_lossy(&output.stderr);
            bail!(Died(format!("{why}: {}", words.trim())))
        }
    }
}

fn start(overlay: &[PathBuf], machine: &[&str]) -> Result<Child> {
    let kernel = image::kernel().context("no kernel")?;
    let initrd = image::join(overlay)?;
    let mut command = Command::new("timeout");
    command
        .arg(LIMIT_S.to_string())
        .arg("qemu-system-x86_64")
        .args(["-m", "3072", "-cpu", "max", "-nographic"])
        .args(["-no-reboot", "-nodefaults", "-serial", "stdio"])
        // Emulation everywhere: a machine that offers KVM to its guests may still not boot one.
        .args(machine)
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 mitigations=off loglevel=3",
        ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64")
}
