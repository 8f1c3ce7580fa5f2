//! Who is told of transitions and of real servers, and how.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use lettre::message::Mailbox;

use super::{NotifyScripts, ServiceId};

/// Instances that go and fail together, and the scripts of all of them as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncGroup {
    /// Its name, as instances name it.
    pub name: String,
    /// Its instances, in file order; two at least.
    pub members: Vec<String>,
    /// Commands run when all of them have entered a state.
    pub notify: NotifyScripts,
}

/// A named pipe that gets a line for every transition. Changing it needs a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyFifo {
    /// Where it is; made if missing.
    pub path: PathBuf,
    /// Program that reads it, with its arguments; the path is added as the last one.
    pub reader: Option<Vec<String>>,
}

/// How mail leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Name or address of the server.
    pub server: String,
    /// Its port.
    pub port: u16,
    /// What we call ourselves in EHLO (RFC 5321 section 4.1.1.1).
    pub hello: String,
    /// Sender.
    pub from: Mailbox,
    /// Recipients, 1 to 32.
    pub to: Vec<Mailbox>,
    /// Encryption.
    pub tls: MailTls,
    /// Authorities that may vouch for the server, instead of the system's.
    pub ca: Option<CaFile>,
    /// Proof of who we are.
    pub login: Option<Login>,
    /// For one attempt, from the connection to the server's last word.
    pub timeout: Duration,
    /// Whether entering FAULT is worth a mail.
    pub faults: bool,
    /// Of whom mails tell.
    pub about: MailSubjects,
}

/// Encryption of the way to the mail server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    /// None.
    None,
    /// STARTTLS (RFC 3207), and no mail where the server does not know it.
    StartTls,
    /// From the first byte (RFC 8314 section 3.3).
    Tls,
}

/// A file of certificates in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says. Read by the daemon.
    pub text: String,
}

/// A name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Password,
    /// Where the password is, if not in the configuration. Read by the daemon.
    pub file: Option<PathBuf>,
}

/// Text that no log shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Of whom mails tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailSubjects {
    /// Names of VRRP instances.
    pub instances: BTreeSet<String>,
    /// Names of sync groups.
    pub groups: BTreeSet<String>,
    /// Services, for their real servers.
    pub services: BTreeSet<ServiceId>,
}
