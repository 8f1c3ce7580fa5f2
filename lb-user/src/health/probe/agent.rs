//! An agent on the real server that says how it is, in the words of HAProxy's agent checks.

use std::{io, net::SocketAddr};

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Late, Place, Verdict,
    tcp::{self, ConnectError},
};
use crate::{
    health::words::{NotUnderstood, Words},
    model::AgentCheck,
};

/// Longest line that is read, in bytes; the words need a hundred.
const MAX_LINE: usize = 1_024;
/// Either ends a line, as with HAProxy: an agent may keep the connection after one of them.
const END_OF_LINE: [u8; 2] = *b"\r\n";

/// Why an agent said nothing useful.
#[derive(Debug, Error)]
pub enum AgentError {
    /// No TCP connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No line in time.
    #[error(transparent)]
    Late(#[from] Late),
    /// The connection broke.
    #[error("the agent at {target} broke the connection: {source}")]
    Broken {
        /// Address asked.
        target: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// The line has no end.
    #[error("the agent at {target} sent more than {MAX_LINE} bytes without an end of line")]
    Endless {
        /// Address asked.
        target: SocketAddr,
    },
    /// The line says nothing.
    #[error("the agent at {target} {source}")]
    Words {
        /// Address asked.
        target: SocketAddr,
        /// What it said instead.
        source: NotUnderstood,
    },
}

/// What an agent has said so far: some of its words last until it takes them back.
pub(super) struct Agent {
    check: AgentCheck,
    words: Words,
}

impl Agent {
    pub(super) fn new(check: &AgentCheck) -> Self {
        Self {
            check: check.clone(),
            words: Words::default(),
        }
    }

    pub(super) async fn attempt(&mut self, place: &Place) -> Result<Verdict, AgentError> {
        match self.listen(place).await {
            Err(error) if !self.check.silence_is_failure => Ok(Verdict::nothing(error.to_string())),
            other => other,
        }
    }

    async fn listen(&mut self, place: &Place) -> Result<Verdict, AgentError> {
        let target = place.target;
        let broken = |source| AgentError::Broken { target, source };
        let mut stream = tcp::connect(place).await?;
        let line = place
            .within(place.limits.answer, "say a line", async {
                if let Some(text) = &self.check.send {
                    stream.write_all(text.as_bytes()).await.map_err(broken)?;
                }
                let mut bytes = Vec::new();
                let mut chunk = [0; 256];
                while !bytes.iter().any(|byte| END_OF_LINE.contains(byte)) {
                    let length = stream.read(&mut chunk).await.map_err(broken)?;
                    if length == 0 {
                        break;
                    }
                    bytes.extend_from_slice(&chunk[..length]);
                    if bytes.len() > MAX_LINE {
                        return Err(AgentError::Endless { target });
                    }
                }
                Ok(bytes)
            })
            .await??;
        let text = String::from_utf8_lossy(&line);
        let ends = END_OF_LINE.map(char::from);
        let first = text.split(ends).next().unwrap_or_default();
        self.words
            .hear(first)
            .map_err(|source| AgentError::Words { target, source })?;
        Ok(self.words.verdict().into())
    }
}
