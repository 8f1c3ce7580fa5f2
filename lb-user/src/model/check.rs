//! Health checks as configured: what is asked of a real server, where, and when.

use std::{net::IpAddr, path::PathBuf, time::Duration};

/// A health check of a real server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Address asked; the real server's own when absent.
    pub address: Option<IpAddr>,
    /// Port asked; the service's when absent.
    pub port: Option<u16>,
    /// Whether the VIP is asked for on the real server, where there is a way, instead of an address of
    /// its own.
    pub on_vip: bool,
    /// Source address; the kernel's choice when absent.
    pub source: Option<IpAddr>,
    /// How long an attempt may take.
    pub limits: Limits,
    /// When attempts are made, and how many decide.
    pub timing: Timing,
}

/// How long an attempt may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// For the TCP connection.
    pub connect: Duration,
    /// For the TLS handshake.
    pub tls: Duration,
    /// From the question to the end of the answer; each answer has this time anew.
    pub answer: Duration,
    /// For everything together.
    pub total: Option<Duration>,
}

/// When attempts are made, and how many decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// From the end of an attempt to the start of the next, while up.
    pub interval: Duration,
    /// The same after a success that was not yet enough to be up.
    pub rising_interval: Duration,
    /// The same while down.
    pub down_interval: Duration,
    /// Successes in a row that make it up, 1 or more.
    pub rise: u32,
    /// Failures in a row that make it down, 1 or more.
    pub fall: u32,
    /// Further attempts before a failed one counts as a failure, while up.
    pub retries: u32,
    /// Before each of those.
    pub delay_before_retry: Duration,
    /// The first attempts of checks that begin together are spread over this time.
    pub warmup: Duration,
    /// Per cent, 0 to 50, by which an interval may be longer or shorter, at random.
    pub jitter: u8,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckKind {
    /// A TCP connection can be made.
    Tcp,
    /// Requests are answered as expected.
    Http(HttpCheck),
}

impl CheckKind {
    /// Its name in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            CheckKind::Tcp => "tcp",
            CheckKind::Http(HttpCheck { tls: None, .. }) => "http",
            CheckKind::Http(HttpCheck { tls: Some(_), .. }) => "https",
        }
    }

    /// Whether a port is asked.
    pub const fn has_port(&self) -> bool {
        match self {
            CheckKind::Tcp | CheckKind::Http(_) => true,
        }
    }
}

/// Requests over HTTP, each on a connection of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpCheck {
    /// HTTPS.
    pub tls: Option<Tls>,
    /// Version of the protocol.
    pub version: HttpVersion,
    /// One or more, in order.
    pub requests: Vec<HttpRequest>,
}

/// Version of HTTP that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1, RFC 9112.
    One,
    /// HTTP/2, RFC 9113: agreed by ALPN with TLS, by prior knowledge without.
    Two,
}

/// One request and what its answer must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpRequest {
    /// Such as `GET`.
    pub method: String,
    /// Absolute path with optional query.
    pub path: String,
    /// `Host` header; address and port asked when absent.
    pub host: Option<String>,
    /// Ranges of expected status codes, first and last.
    pub status: Vec<(u16, u16)>,
    /// What the body must be; it is not read when absent.
    pub body: Option<BodyRule>,
}

/// What an answer's body must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BodyRule {
    /// It contains a match of this regular expression, which is a valid one.
    Matches(String),
    /// It has this SHA-256.
    Sha256([u8; 32]),
}

/// How TLS is spoken, and who is believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Name asked for (SNI) and expected in the certificate; that of the `Host` header when absent,
    /// or the address asked.
    pub server_name: Option<String>,
    /// Whether the certificate is verified.
    pub verify: bool,
    /// File with the certificates of the authorities believed, in PEM; the system's when absent.
    pub ca_file: Option<PathBuf>,
}
