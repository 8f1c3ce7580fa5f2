//! A socket to the kernel's IPVS: one request at a time, each waits for its answer. The kernel answers
//! within the system call, so the daemon's task does not wait for anybody else.

use std::{
    collections::HashMap,
    io,
    process::{Command as Program, Stdio},
    time::Duration,
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use thiserror::Error;

use super::codec::{
    Answer, CodecError, Command, Destination, DestinationEntry, Key, ServiceEntry, SyncDaemon,
    Timeouts, answers,
};
use crate::dataplane::genetlink::family_question;

/// The kernel puts at most 32 KiB of a dump into one datagram.
const DATAGRAM: usize = 65_536;
/// An answer that takes longer will not come: the kernel gives it within the request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams after which an answer is given up: a million real servers would fit.
const MAX_DATAGRAMS: usize = 10_000;

/// Why the kernel's IPVS did not do what was asked. Every message ends in what to do.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The module is missing.
    #[error(
        "this kernel has no IPVS: module ip_vs is not loaded, and loading it failed ({0}); load it with \
         `modprobe ip_vs`, or install the kernel package that has net/netfilter/ipvs/ip_vs.ko"
    )]
    NoModule(String),
    /// The module of a scheduler is missing.
    #[error(
        "{service}: the kernel does not find scheduler `{scheduler}`: load its module with \
         `modprobe ip_vs_{scheduler}`, or choose another `scheduler`"
    )]
    NoScheduler {
        /// The service that wants it.
        service: String,
        /// Its name.
        scheduler: String,
    },
    /// The module of a scheduler or of a persistence engine is missing.
    #[error(
        "{service}: the kernel does not find scheduler `{scheduler}` or persistence engine `{engine}`: load their \
         modules with `modprobe -a ip_vs_{scheduler} ip_vs_pe_{engine}`, or leave one of them out"
    )]
    NoEngine {
        /// The service that wants them.
        service: String,
        /// The scheduler's name.
        scheduler: String,
        /// The persistence engine's name.
        engine: String,
    },
    /// The interface that connections should be shared by is not there.
    #[error("there is no interface {0}: make it, or name another one in [lvs_sync_daemon]")]
    NoSyncInterface(String),
    /// Not enough rights.
    #[error("no permission to change IPVS: run lbd as root, or with CAP_NET_ADMIN")]
    NoPermission,
    /// The socket failed.
    #[error("cannot {what} of IPVS: {source}; the kernel's log may say more")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// What failed.
        source: io::Error,
    },
    /// The kernel says no.
    #[error("IPVS refuses to {what}: {source}; `ipvsadm -Ln` shows what it holds")]
    Refused {
        /// What was asked.
        what: String,
        /// Its error.
        source: io::Error,
    },
    /// The kernel says what nobody understands.
    #[error("IPVS gives an answer that lbd does not understand: {0}; please report it")]
    Odd(#[from] CodecError),
}

impl KernelError {
    fn is(&self, code: i32) -> bool {
        matches!(self, KernelError::Refused { source, .. } if source.raw_os_error() == Some(code))
    }
}

/// What IPVS holds: services with their real servers, newest first.
pub type Table = Vec<(ServiceEntry, Vec<DestinationEntry>)>;

/// The kernel's IPVS in this network namespace.
pub struct Kernel {
    socket: Socket,
    family: u16,
    sequence: u32,
    changes: u64,
}

impl Kernel {
    /// Opens a socket, and loads the module where that is possible and needed.
    pub fn open() -> Result<Self, KernelError> {
        let failed = |what| move |source| KernelError::Socket { what, source };
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(failed("open a netlink socket"))?;
        socket
            .bind_auto()
            .and_then(|_| socket.connect(&SocketAddr::new(0, 0)))
            .map_err(failed("use the netlink socket"))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))
            .map_err(|error| failed("use the netlink socket")(error.into()))?;
        let mut kernel = Self {
            socket,
            family: 0,
            sequence: 0,
            changes: 0,
        };
        kernel.family = match kernel.find_family()? {
            Some(family) => family,
            None => {
                let trouble = load_module();
                kernel
                    .find_family()?
                    .ok_or(KernelError::NoModule(trouble))?
            }
        };
        Ok(kernel)
    }

    fn find_family(&mut self) -> Result<Option<u16>, KernelError> {
        self.sequence += 1;
        let question = family_question("IPVS", self.sequence);
        let answers = match self.ask(&question, "find the family", true) {
            Err(error) if error.is(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            Answer::Family(number) => Some(number),
            _ => None,
        }))
    }

    /// How often something was changed.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// Changes something.
    pub fn change(&mut self, command: &Command) -> Result<(), KernelError> {
        self.changes += 1;
        self.command(command)
            .map(|_| ())
            .map_err(|error| match command {
                Command::NewService(service) | Command::SetService(service)
                    if error.is(libc::ENOENT) =>
                {
                    let (name, scheduler) = (service.key.to_string(), service.scheduler.clone());
                    match service.engine.clone() {
                        None => KernelError::NoScheduler {
                            service: name,
                            scheduler,
                        },
                        Some(engine) => KernelError::NoEngine {
                            service: name,
                            scheduler,
                            engine,
                        },
                    }
                }
                _ => error,
            })
    }

    /// Everything that IPVS holds.
    pub fn table(&mut self) -> Result<Table, KernelError> {
        let mut table = Table::new();
        for answer in self.command(&Command::Services)? {
            if let Answer::Service(entry) = answer {
                table.push((entry, Vec::new()));
            }
        }
        for (entry, servers) in &mut table {
            *servers = self.servers(entry.service.key)?;
        }
        Ok(table)
    }

    /// The real servers of a service.
    fn servers(&mut self, key: Key) -> Result<Vec<DestinationEntry>, KernelError> {
        let answers = match self.command(&Command::Destinations(key)) {
            Ok(answers) => answers,
            // Somebody removed the service in between.
            Err(error) if error.is(libc::ESRCH) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut servers = Vec::new();
        for answer in answers {
            if let Answer::Destination(bytes) = answer {
                servers.push(DestinationEntry::read(&bytes, key.is_v6())?);
            }
        }
        Ok(servers)
    }

    /// Everything that IPVS holds, where real servers of services whose counters stand still are as they were `before`.
    pub fn table_since(&mut self, before: Table) -> Result<Table, KernelError> {
        let mut known: HashMap<Key, (ServiceEntry, Vec<DestinationEntry>)> = before
            .into_iter()
            .map(|(entry, servers)| (entry.service.key, (entry, servers)))
            .collect();
        let mut table = Table::new();
        for answer in self.command(&Command::Services)? {
            if let Answer::Service(entry) = answer {
                let servers = match known.remove(&entry.service.key) {
                    Some((old, servers)) if old == entry => servers,
                    _ => self.servers(entry.service.key)?,
                };
                table.push((entry, servers));
            }
        }
        Ok(table)
    }

    /// The time-outs of connections.
    pub fn timeouts(&mut self) -> Result<Timeouts, KernelError> {
        let answers = self.command(&Command::Timeouts)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            Answer::Timeouts(timeouts) => Some(timeouts),
            _ => None,
        });
        found.ok_or_else(|| odd("tell its time-outs"))
    }

    /// Sync daemons that run.
    pub fn daemons(&mut self) -> Result<Vec<SyncDaemon>, KernelError> {
        let answers = self.command(&Command::Daemons)?;
        let daemon = |answer| match answer {
            Answer::Daemon(daemon) => Some(daemon),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(daemon).collect())
    }

    /// Buckets of the table of connections.
    pub fn table_size(&mut self) -> Result<u32, KernelError> {
        let answers = self.command(&Command::Info)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            Answer::Info { table_size, .. } => Some(table_size),
            _ => None,
        });
        found.ok_or_else(|| odd("tell its size"))
    }

    fn command(&mut self, command: &Command) -> Result<Vec<Answer>, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = command.encode(self.family, self.sequence);
        self.ask(&bytes, &describe(command), command.ends_with_answer())
    }

    /// Sends a request and collects its answers. `one` ends with the first.
    fn ask(&self, request: &[u8], what: &str, one: bool) -> Result<Vec<Answer>, KernelError> {
        let failed = |what| move |source| KernelError::Socket { what, source };
        self.socket
            .send(request, 0)
            .map_err(failed("send a request"))?;
        let mut collected = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket
                .recv(&mut datagram, 0)
                .map_err(failed("get an answer"))?;
            for (sequence, answer) in answers(&datagram)? {
                if sequence != self.sequence {
                    // Of a request that was given up.
                    continue;
                }
                match answer {
                    Answer::Status(0) | Answer::End => return Ok(collected),
                    Answer::Status(code) => {
                        let source = io::Error::from_raw_os_error(code.saturating_neg());
                        return Err(match code.saturating_neg() {
                            libc::EPERM => KernelError::NoPermission,
                            _ => KernelError::Refused {
                                what: what.to_owned(),
                                source,
                            },
                        });
                    }
                    other => collected.push(other),
                }
            }
            if one && !collected.is_empty() {
                return Ok(collected);
            }
        }
        Err(odd(what))
    }
}

fn odd(what: &str) -> KernelError {
    KernelError::Refused {
        what: what.to_owned(),
        source: io::Error::from(io::ErrorKind::InvalidData),
    }
}

/// As keepalived and ipvsadm do. Returns why it cannot be, for the message.
fn load_module() -> String {
    let output = Program::new("modprobe")
        .arg("ip_vs")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => "modprobe says nothing".to_owned(),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().next().unwrap_or("modprobe failed").trim();
            line.to_owned()
        }
        Err(error) => format!("modprobe: {error}"),
    }
}

/// A command in words, as in "refuses to ...".
pub fn describe(command: &Command) -> String {
    let server = |server: &Destination| match server.address {
        std::net::IpAddr::V4(address) => format!("{address}:{}", server.port),
        std::net::IpAddr::V6(address) => format!("[{address}]:{}", server.port),
    };
    let key = |key: &Key| key.to_string();
    match command {
        Command::NewService(service) => {
            format!("add service {} {}", key(&service.key), service.scheduler)
        }
        Command::SetService(service) => {
            format!("change service {} {}", key(&service.key), service.scheduler)
        }
        Command::DeleteService(which) => format!("remove service {}", key(which)),
        Command::NewDestination(of, new) => format!(
            "add real server {} of weight {} to {}",
            server(new),
            new.weight,
            key(of)
        ),
        Command::SetDestination(of, new) => format!(
            "change real server {} of {} to weight {}, {}",
            server(new),
            key(of),
            new.weight,
            new.forward.label()
        ),
        Command::DeleteDestination(of, old) => {
            format!("remove real server {} of {}", server(old), key(of))
        }
        Command::Services => "list services".to_owned(),
        Command::Destinations(of) => format!("list real servers of {}", key(of)),
        Command::NewDaemon(daemon) => {
            format!("start a sync daemon on {}", daemon.interface)
        }
        Command::DeleteDaemon(_) => "stop a sync daemon".to_owned(),
        Command::Daemons => "list sync daemons".to_owned(),
        Command::SetTimeouts(_) => "change time-outs".to_owned(),
        Command::Timeouts => "tell its time-outs".to_owned(),
        Command::Info => "tell its size".to_owned(),
        Command::Zero(_) => "set counters back".to_owned(),
        Command::Flush => "remove every service".to_owned(),
    }
}
