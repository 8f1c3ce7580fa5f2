//! Debian packages: installed as root, otherwise named in the exact command.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::run;

/// Services of freshly installed packages do not start while this file says so.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const NO_SERVICES: &str =
    "#!/bin/sh\n# lbd's setup: services of packages being installed do not start.\nexit 101\n";

/// Installs packages.
pub fn install(packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    if run::find_program("apt-get").is_none() {
        bail!(
            "missing: {list} (Debian's package names); install them with your system's package manager"
        );
    }
    if !run::is_root() {
        bail!(
            "missing packages; run:\n    sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    run::stage(&format!("installing {list}"), || {
        update()?;
        let _policy = NoServices::begin()?;
        apt(&["install", "--yes", "--no-install-recommends"], packages)
            .with_context(|| format!("apt-get cannot install {list}"))
    })
}

/// Whether a package can be installed.
pub fn is_available(package: &str) -> bool {
    run::output(Command::new("apt-cache").args(["show", package]))
        .is_some_and(|text| !text.is_empty())
}

/// Refreshes the package lists.
pub fn update() -> Result<()> {
    if run::is_root() && run::find_program("apt-get").is_some() {
        apt(&["update"], &[])?;
    }
    Ok(())
}

fn apt(arguments: &[&str], packages: &[String]) -> Result<()> {
    let output = Command::new("apt-get")
        .arg("--quiet=2")
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("apt-get")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Installing nginx or keepalived must not start them on this machine.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        // One with our own words was left by an interrupted run.
        let ours = fs::read_to_string(POLICY).map_or(true, |text| text == NO_SERVICES);
        if ours {
            fs::write(POLICY, NO_SERVICES).context(POLICY)?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
