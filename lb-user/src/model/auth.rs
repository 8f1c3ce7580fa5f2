//! How adverts prove where they come from.

use std::{fmt, path::PathBuf, time::Duration};

/// How an advert proves where it comes from. PASS and AH do not protect against anybody who can read the
/// segment's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    None,
    /// Version 2: a password in clear (RFC 2338), up to eight bytes.
    Pass([u8; 8]),
    /// Version 2: HMAC-MD5 in an authentication header, as keepalived computes it. A key of up to eight
    /// bytes.
    Ah([u8; 8]),
    /// Both versions: keepalived's trailer with HMAC-SHA256.
    Hmac(HmacAuth),
}

/// keepalived's `auth_hmac`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmacAuth {
    /// All that are believed: 1 to 16, of different ids.
    pub keys: Vec<HmacKey>,
    /// Id of the one that our adverts are signed with.
    pub active: u8,
    /// How far the sender's clock may be from ours, in whole seconds; `None`: clocks do not matter, and
    /// adverts only must not repeat.
    pub window: Option<Duration>,
    /// Whether ours are signed and others must be.
    pub mode: HmacMode,
}

impl HmacAuth {
    /// The key with this id.
    pub fn key(&self, id: u8) -> Option<&HmacKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The key of our adverts, where they are signed.
    pub fn sending(&self) -> Option<&HmacKey> {
        match self.mode {
            HmacMode::Enforce | HmacMode::Permissive => self.key(self.active),
            HmacMode::ReceiveOnly => None,
        }
    }
}

/// The steps by which a running pair begins to authenticate without losing an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HmacMode {
    /// Ours are signed, and others must be.
    Enforce,
    /// Ours are signed; others may be.
    Permissive,
    /// Ours are not signed; others may be.
    ReceiveOnly,
}

impl HmacMode {
    /// Whether an advert without trailer is believed.
    pub fn believes_unsigned(self) -> bool {
        match self {
            HmacMode::Enforce => false,
            HmacMode::Permissive | HmacMode::ReceiveOnly => true,
        }
    }
}

/// A key by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmacKey {
    /// 1 to 255; 0 is none's.
    pub id: u8,
    /// 32 to 64 bytes. Empty until its file has been read.
    pub secret: Secret,
    /// The file that holds it, where the configuration does not.
    pub file: Option<PathBuf>,
}

/// Bytes that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Hides these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// For the one who computes with them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
