//! What is known of real servers, as text for the next daemon: a server that was down stays down until
//! its checks pass again. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{plan::Job, state::Health};
use crate::model::{Advice, ServiceId};

/// Of the form below. Another one is not read: the checks soon tell everything anew.
const VERSION: u32 = 1;

/// Why a memory is of no use.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// It is not what a daemon writes.
    #[error("not a memory of checks: {0}")]
    Garbled(#[from] serde_json::Error),
    /// Another daemon wrote it.
    #[error("of version {found}, and this is version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
}

/// What a daemon knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    version: u32,
    servers: Vec<Remembered>,
}

/// What it knew of a real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    service: String,
    address: IpAddr,
    /// Its state.
    pub health: Health,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why it was down.
    pub cause: Option<String>,
    /// It had never been up. Files of earlier programs do not say.
    #[serde(default)]
    pub never_up: bool,
    checks: Vec<RememberedCheck>,
}

/// What it knew by one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedCheck {
    fingerprint: u64,
    /// Its state.
    pub health: Health,
    /// Why it was down.
    pub cause: Option<String>,
    /// What it said of the weight.
    pub advice: Option<Advice>,
}

impl Memory {
    /// Of these servers.
    pub fn new(servers: Vec<Remembered>) -> Self {
        Self {
            version: VERSION,
            servers,
        }
    }

    /// As text.
    pub fn encode(&self) -> Result<String, MemoryError> {
        Ok(serde_json::to_string(self)?)
    }

    /// From text.
    pub fn decode(text: &str) -> Result<Self, MemoryError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version: found } = serde_json::from_str(text)?;
        if found != VERSION {
            return Err(MemoryError::Version { found });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// What it knew of each real server.
    pub fn servers(&self) -> &[Remembered] {
        &self.servers
    }
}

impl Remembered {
    /// Of a real server of a service.
    pub fn new(service: ServiceId, address: IpAddr, health: Health, since_ms: u64) -> Self {
        Self {
            service: service.to_string(),
            address,
            health,
            since_ms,
            cause: None,
            never_up: false,
            checks: Vec::new(),
        }
    }

    /// Its service, as text, and its address.
    pub fn name(&self) -> (&str, IpAddr) {
        (&self.service, self.address)
    }

    /// Adds what a check says.
    pub fn add(
        &mut self,
        job: &Job,
        health: Health,
        cause: Option<String>,
        advice: Option<Advice>,
    ) {
        self.checks.push(RememberedCheck {
            fingerprint: fingerprint(job),
            health,
            cause,
            advice,
        });
    }

    /// What was known by this very check.
    pub fn by(&self, job: &Job) -> Option<&RememberedCheck> {
        let wanted = fingerprint(job);
        self.checks.iter().find(|check| check.fingerprint == wanted)
    }
}

/// Tells a check from the others of its real server, and from itself before its configuration changed
/// (FNV-1a, 64 bits). Where two versions of lbd disagree, the check counts as a new one.
fn fingerprint(job: &Job) -> u64 {
    let text = format!("{} {:?}", job.target, job.check);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::plan::tests::job;

    #[test]
    fn what_is_written_is_read() {
        let (one, two) = (job(1, 5), job(1, 6));
        let (service, address) = one.subject;
        let mut server = Remembered::new(service, address, Health::Down, 5);
        server.cause = Some("refused".into());
        server.add(&one, Health::Down, Some("refused".into()), None);
        server.add(&two, Health::Up, None, Some(Advice::Percent(50)));
        let memory = Memory::new(vec![server]);
        let read = Memory::decode(&memory.encode().unwrap()).unwrap();
        assert_eq!(read, memory);
        let server = &read.servers()[0];
        assert_eq!(server.by(&one).unwrap().health, Health::Down);
        assert_eq!(server.by(&two).unwrap().advice, Some(Advice::Percent(50)));
        assert_eq!(server.by(&job(1, 7)), None);
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            "{\"version\":1}",
            "{\"version\":1,\"servers\":[{}]}",
        ] {
            assert!(
                matches!(Memory::decode(text), Err(MemoryError::Garbled(_))),
                "{text}"
            );
        }
        let later = Memory::decode("{\"version\":2,\"people\":[]}");
        assert!(matches!(later, Err(MemoryError::Version { found: 2 })));
    }
}
