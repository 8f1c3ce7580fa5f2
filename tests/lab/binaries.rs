//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// `lbd` and `lbctl` beside this program, wherever the build put it.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("no folder")?;
    let folder = if folder.ends_with("deps") {
        folder.parent().context("no folder")?
    } else {
        folder
    };
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is missing; run `cargo build` first",
        path.display()
    );
    Ok(path)
}
