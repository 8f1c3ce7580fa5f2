//! A download that lasts: what becomes of it shows what became of its connection.

use std::{
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Result, ensure};

use crate::{Guide, guide::VIP};

/// A download that is running.
pub struct Download {
    curl: Child,
    content: Vec<u8>,
    file: PathBuf,
}

impl Download {
    /// Begins one of `length` bytes through the VIP. Real servers send [`crate::server::SLOW`] bytes a
    /// second.
    pub fn start(guide: &Guide, length: usize) -> Result<Self> {
        let content = vec![b'x'; length];
        for server in [&guide.rs1, &guide.rs2] {
            server.publish("slow", &content)?;
        }
        // Into a file: a pipe that nobody reads would hold the transfer up.
        let file = guide.lab.directory().join("slow");
        let mut curl = guide.client.command("curl");
        curl.args(["--silent", "--show-error", "--fail"]);
        // Who only receives waits for ever when a connection is lost without a word.
        curl.args(["--speed-limit", "1", "--speed-time", "30"]);
        curl.args(["--max-time", "300", "--output"]);
        curl.arg(&file).arg(format!("http://{VIP}/slow"));
        Ok(Self {
            curl: curl.stderr(Stdio::piped()).spawn()?,
            content,
            file,
        })
    }

    /// Waits for its end; an error unless it brought every byte.
    pub fn finish(self) -> Result<()> {
        let output = self.curl.wait_with_output()?;
        let received = std::fs::read(&self.file).unwrap_or_default();
        ensure!(
            output.status.success() && received == self.content,
            "the download broke after {} of {} bytes: {}: {}",
            received.len(),
            self.content.len(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
