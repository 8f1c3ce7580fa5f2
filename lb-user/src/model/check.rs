//! Health checks as configured: what is asked of a real server, where, and when.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

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
    /// `grpc.health.v1` says SERVING.
    Grpc(GrpcCheck),
    /// A greeting over SMTP.
    Smtp(SmtpCheck),
    /// A question has the right answer.
    Dns(DnsCheck),
    /// A datagram has the right reply, or no ICMP error comes back.
    Udp(UdpCheck),
    /// An ICMP echo request has a reply.
    Icmp,
    /// A command exits with success.
    Exec(ExecCheck),
    /// An agent on the real server says how it is.
    Agent(AgentCheck),
    /// A file says how the real server is.
    File(PathBuf),
}

impl CheckKind {
    /// Its name in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            CheckKind::Tcp => "tcp",
            CheckKind::Http(HttpCheck { tls: None, .. }) => "http",
            CheckKind::Http(HttpCheck { tls: Some(_), .. }) => "https",
            CheckKind::Grpc(_) => "grpc",
            CheckKind::Smtp(_) => "smtp",
            CheckKind::Dns(_) => "dns",
            CheckKind::Udp(_) => "udp",
            CheckKind::Icmp => "icmp",
            CheckKind::Exec(_) => "exec",
            CheckKind::Agent(_) => "agent",
            CheckKind::File(_) => "file",
        }
    }

    /// Whether a port is asked.
    pub const fn has_port(&self) -> bool {
        match self {
            CheckKind::Tcp
            | CheckKind::Http(_)
            | CheckKind::Grpc(_)
            | CheckKind::Smtp(_)
            | CheckKind::Dns(_)
            | CheckKind::Udp(_)
            | CheckKind::Agent(_) => true,
            CheckKind::Icmp | CheckKind::Exec(_) | CheckKind::File(_) => false,
        }
    }

    /// Whether its silence says nothing: such a check never ends a state by itself.
    pub const fn may_be_silent(&self) -> bool {
        matches!(
            self,
            CheckKind::Agent(AgentCheck {
                silence_is_failure: false,
                ..
            })
        )
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
    /// Ranges of status codes by which a server asks to be drained; they go before the expected ones.
    pub drain: Vec<(u16, u16)>,
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

/// The health call of gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrpcCheck {
    /// Name of the service asked about, at most 4,096 bytes; empty: the server as a whole.
    pub service: String,
    /// Authority of the call; address and port asked when absent.
    pub host: Option<String>,
    /// Over TLS.
    pub tls: Option<Tls>,
}

/// A greeting over SMTP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SmtpCheck {
    /// Name given with EHLO; our address in brackets when absent.
    pub helo: Option<String>,
    /// Over TLS.
    pub tls: Option<Tls>,
    /// TLS is begun by STARTTLS instead of at once.
    pub starttls: bool,
}

/// A DNS question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsCheck {
    /// Name asked for.
    pub name: String,
    /// Type asked for, such as `A`: one of [`RECORDS`].
    pub record: String,
    /// Records that must be in the answer, as in a zone file; without any, one of the type must be.
    pub expect: Vec<String>,
    /// Whether the server is asked to ask others.
    pub recursion: bool,
}

/// Types of records that can be asked for.
pub const RECORDS: [&str; 19] = [
    "A", "AAAA", "ANY", "CAA", "CNAME", "DNSKEY", "DS", "HINFO", "HTTPS", "MX", "NAPTR", "NS",
    "PTR", "SOA", "SRV", "SSHFP", "SVCB", "TLSA", "TXT",
];

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UdpCheck {
    /// What is sent.
    pub payload: Vec<u8>,
    /// How the reply must begin; without it silence is success.
    pub reply: Option<Pattern>,
}

/// The beginning of a reply, each byte with the bits of it that count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Vec<(u8, u8)>);

impl Pattern {
    /// Hexadecimal digits, two a byte; `?` stands for any digit.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'?' => Some((0, 0)),
            byte => {
                let value = char::from(byte).to_digit(16)?;
                Some((u8::try_from(value).ok()?, 0x0f))
            }
        };
        let bytes = text.as_bytes().chunks(2).map(|pair| {
            let [high, low] = pair else { return None };
            let (high, low) = (digit(*high)?, digit(*low)?);
            Some((high.0 << 4 | low.0, high.1 << 4 | low.1))
        });
        bytes.collect::<Option<_>>().map(Self)
    }

    /// These bytes and no others.
    pub fn exactly(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| (*byte, 0xff)).collect())
    }

    /// The bytes, with 0 for the digits that do not count.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|(value, _)| *value).collect()
    }

    /// Whether every digit counts.
    pub fn is_exact(&self) -> bool {
        self.0.iter().all(|(_, mask)| *mask == 0xff)
    }

    /// Whether `bytes` begin like this.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let same = |((value, mask), byte): (&(u8, u8), &u8)| byte & mask == *value;
        bytes.len() >= self.0.len() && self.0.iter().zip(bytes).all(same)
    }
}

/// As [`Pattern::parse`] reads it.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (value, mask) in &self.0 {
            for shift in [4, 0] {
                match mask >> shift & 0x0f {
                    0 => f.write_str("?")?,
                    _ => write!(f, "{:x}", value >> shift & 0x0f)?,
                }
            }
        }
        Ok(())
    }
}

/// An external command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExecCheck {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Exit codes from 2 on are success, with a weight of two less.
    pub dynamic_weight: bool,
}

/// An agent in the manner of HAProxy's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentCheck {
    /// What is sent to it first.
    pub send: Option<String>,
    /// Whether an agent that cannot be reached, or says nothing useful, means failure. With HAProxy it
    /// means nothing.
    pub silence_is_failure: bool,
}

/// What a check says of a real server's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Advice {
    /// It keeps its flows and gets no new ones.
    Drain,
    /// This one, 0-65535.
    Weight(u32),
    /// Per cent of the configured one.
    Percent(u32),
}

impl Advice {
    /// The weight, 0-65535, where `configured` is in the configuration. A share above nothing is never
    /// rounded to nothing: that would be to drain.
    pub fn weight(self, configured: u32) -> u32 {
        let most = 65_535;
        match self {
            Advice::Drain => 0,
            Advice::Weight(weight) => weight.min(most),
            Advice::Percent(share) => {
                let exact = u64::from(configured) * u64::from(share);
                let least = u64::from(exact > 0);
                let rounded = ((exact + 50) / 100).clamp(least, most.into());
                u32::try_from(rounded).unwrap_or(most)
            }
        }
    }
}

/// What all checks of a real server say of its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advised {
    /// The least of the weights.
    weight: Option<u32>,
    /// The least of the shares, per cent.
    percent: Option<u32>,
}

impl Advised {
    /// Takes what another check says.
    pub fn add(&mut self, advice: Advice) {
        let least = |known: Option<u32>, new: u32| Some(known.map_or(new, |known| known.min(new)));
        match advice {
            Advice::Drain => self.weight = Some(0),
            Advice::Weight(weight) => self.weight = least(self.weight, weight),
            Advice::Percent(share) => self.percent = least(self.percent, share),
        }
    }

    /// The weight, where `configured` is in the configuration; nothing where no check says anything.
    pub fn weight(self, configured: u32) -> Option<u32> {
        let shares = self.percent.map(Advice::Percent);
        let weights = self.weight.map(Advice::Weight);
        let both = shares.into_iter().chain(weights);
        both.map(|advice| advice.weight(configured)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let rows: [(&str, &[u8], bool); 9] = [
            ("", b"", true),
            ("", b"x", true),
            ("6162", b"ab", true),
            ("6162", b"abc", true),
            ("6162", b"a", false),
            ("61??63", b"abc", true),
            ("61??63", b"abd", false),
            ("6?", b"a", true),
            ("?1", b"b", false),
        ];
        for (text, bytes, matches) in rows {
            let pattern = Pattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), text);
            assert_eq!(pattern.matches(bytes), matches, "{text} {bytes:?}");
        }
        for odd in ["6", "6g", "61 62", "é?"] {
            assert_eq!(Pattern::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn advised_weights() {
        use Advice::{Drain, Percent, Weight};
        let rows = [
            (Drain, 10, 0),
            (Weight(7), 10, 7),
            (Weight(0), 10, 0),
            (Percent(75), 10, 8),
            (Percent(100), 10, 10),
            (Percent(1), 10, 1),
            (Percent(0), 10, 0),
            (Percent(50), 0, 0),
            (Percent(u32::MAX), 65_535, 65_535),
        ];
        for (advice, configured, weight) in rows {
            assert_eq!(
                advice.weight(configured),
                weight,
                "{advice:?} of {configured}"
            );
        }
    }
}
