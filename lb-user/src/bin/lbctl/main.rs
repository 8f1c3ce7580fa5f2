//! Shows and steers a running lbd. Knows only the API.

mod capture;
mod data_plane;
mod doctor;
mod events;
mod health;
mod notify;
mod pools;
mod print;
mod tables;
mod tracking;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use hyper::Method;
use lb_user::api::{
    client::{self, ClientError},
    proto::{self, Diagnosis, FlowPage, MapDump, Reload, Status, Steered, TableInfo, Why},
};
use serde::{Serialize, de::DeserializeOwned};

/// Show and steer lbd.
///
/// Exit codes: 0 fine, 1 failed, 2 usage, 3 cannot reach lbd, 4 configuration invalid.
#[derive(Parser)]
#[command(name = "lbctl", version)]
struct Arguments {
    /// Socket of the daemon.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/run/lbd/lbd.sock"
    )]
    socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What is going on, problems first.
    Status,
    /// Services and real servers, as `ipvsadm -Ln` prints them.
    Services {
        /// Counters, as `ipvsadm -Ln --stats` prints them.
        #[arg(long)]
        stats: bool,
        /// What comes a second, as `ipvsadm -Ln --rate` prints it.
        #[arg(long, conflicts_with = "stats")]
        rate: bool,
    },
    /// Every health check: what it says, since when, how often it was made and how often it failed, and its last
    /// error.
    Health,
    /// VRRP instances with timers, peers and counters; or an order for one.
    Vrrp {
        #[command(subcommand)]
        command: Option<VrrpCommand>,
    },
    /// What happened since lbd started, oldest first: transitions, disagreements with other routers,
    /// health, reloads, orders.
    Events {
        /// Go on until interrupted. With --json, an event a line.
        #[arg(short, long)]
        follow: bool,
        /// Only events after this id.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
    /// BPF maps.
    Map {
        #[command(subcommand)]
        command: MapCommand,
    },
    /// Steer a real server until the next reload.
    Backend {
        #[command(subcommand)]
        command: BackendCommand,
    },
    /// Let XDP or IPVS forward until a reload or a restart, with the connections of the other; `auto` ends
    /// that. Only with `mode = "auto"`, where both can be.
    Dataplane {
        /// Which one.
        #[arg(value_enum)]
        which: data_plane::Which,
    },
    /// Flows, a page at a time, ordered by client.
    Flows {
        /// An address, a network, or an address with a port.
        #[arg(long)]
        client: Option<String>,
        /// As in `services`, with or without the protocol: "10.1.15.50:80", "UDP 10.1.15.50:53".
        #[arg(long)]
        service: Option<String>,
        /// Address of a real server.
        #[arg(long)]
        backend: Option<String>,
        /// Flows to skip.
        #[arg(long, default_value_t = 0)]
        offset: usize,
        /// Flows to list.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Look for what usually goes wrong: real servers that answer ARP for a VIP, real servers that are down or
    /// cannot be found, and what slows this host. Exit code 1 if anything is found.
    Doctor,
    /// What would become of a client's packet, and why.
    Why {
        /// Client with its port, such as 192.0.2.9:40000.
        client: String,
        /// VIP with its port, such as 10.1.15.50:80.
        vip: String,
        /// tcp, udp or sctp.
        #[arg(long, default_value = "tcp")]
        protocol: String,
    },
    /// Write what XDP does with packets to a pcapng file, with the verdict and the real server of each as
    /// its comment, until interrupted. Packets are shown as they leave. Costs nothing while it does not
    /// run.
    Capture {
        /// An address or a network.
        #[arg(long)]
        client: Option<String>,
        /// As in `services`, with or without the protocol.
        #[arg(long)]
        service: Option<String>,
        /// Address of a real server.
        #[arg(long)]
        backend: Option<String>,
        /// forwarded, passed, dropped, or the name of a reason as in `status`.
        #[arg(long)]
        only: Option<String>,
        /// End after this many packets.
        #[arg(short, long)]
        count: Option<u64>,
        /// Bytes kept of each packet, at most 60000.
        #[arg(short, long, default_value_t = 1600)]
        snap_length: u32,
        /// The file; - is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
    },
    /// Make lbd read its configuration again.
    Reload {
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand)]
enum VrrpCommand {
    /// Let another router be master: yield, and keep the lowest priority until reset.
    Failover {
        /// Name of the instance.
        instance: String,
    },
    /// Another priority until reset.
    Priority {
        /// Name of the instance.
        instance: String,
        /// 1 to 254.
        #[arg(value_parser = clap::value_parser!(u8).range(1..=254))]
        priority: u8,
    },
    /// As configured again.
    Reset {
        /// Name of the instance.
        instance: String,
    },
    /// Announce the addresses of a master again.
    Announce {
        /// Name of the instance.
        instance: String,
    },
}

#[derive(Subcommand)]
enum BackendCommand {
    /// It keeps its connections and gets no new ones.
    Drain(Meant),
    /// As configured again.
    Enable(Meant),
    /// Another share of new connections.
    Weight {
        #[command(flatten)]
        meant: Meant,
        /// 0 to 65535; 0 keeps its connections and gives it no new ones.
        weight: u32,
    },
}

/// Which real server of which service.
#[derive(clap::Args)]
struct Meant {
    /// Address of the real server.
    address: String,
    /// Only of this service, such as "10.1.15.50:80". Default: of all that have it.
    #[arg(long)]
    service: Option<String>,
}

#[derive(Subcommand)]
enum MapCommand {
    /// Names and sizes.
    List,
    /// Decoded entries of one map, or of all.
    Dump {
        /// As in `map list`.
        name: Option<String>,
    },
}

const CANNOT_REACH: u8 = 3;
const INVALID_CONFIG: u8 = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut code = ExitCode::SUCCESS;
    match run(&arguments, &mut code).await {
        Ok(text) => {
            use std::io::Write;
            // A reader that closes the pipe early has seen what it wanted.
            let _ = std::io::stdout().write_all(text.as_bytes());
            code
        }
        Err(error) => {
            eprintln!("lbctl: {error}");
            match error {
                ClientError::Unreachable { .. } | ClientError::Silent(_) => {
                    ExitCode::from(CANNOT_REACH)
                }
                ClientError::Refused(failure) if failure.invalid_config => {
                    ExitCode::from(INVALID_CONFIG)
                }
                ClientError::Refused(_) | ClientError::Nonsense(_) | ClientError::File { .. } => {
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// What to print. A command that found something wrong changes the exit code.
async fn run(arguments: &Arguments, code: &mut ExitCode) -> Result<String, ClientError> {
    match &arguments.command {
        Command::Status => {
            let status: Status = get(arguments, proto::STATUS).await?;
            Ok(show(arguments, &status, print::status))
        }
        Command::Health => {
            let status: Status = get(arguments, proto::STATUS).await?;
            if arguments.json {
                return Ok(show(arguments, &status.checks, |_| String::new()));
            }
            Ok(health::health(&status))
        }
        Command::Services { stats, rate } => {
            let status: Status = get(arguments, proto::STATUS).await?;
            let table = match (stats, rate) {
                (true, _) => tables::service_stats,
                (false, true) => tables::service_rates,
                (false, false) => tables::services,
            };
            Ok(show(arguments, &status.data_plane, table))
        }
        Command::Vrrp {
            command: Some(command),
        } => {
            let (instance, action, priority) = match command {
                VrrpCommand::Failover { instance } => (instance, "failover", None),
                VrrpCommand::Priority { instance, priority } => {
                    (instance, "priority", Some(priority.to_string()))
                }
                VrrpCommand::Reset { instance } => (instance, "reset", None),
                VrrpCommand::Announce { instance } => (instance, "announce", None),
            };
            let path = query(
                proto::VRRP,
                &[
                    ("instance", Some(instance.clone())),
                    ("action", Some(action.to_owned())),
                    ("priority", priority),
                ],
            );
            let done: Steered = client::call(&arguments.socket, Method::POST, &path).await?;
            Ok(show(arguments, &done, print::steered))
        }
        Command::Vrrp { command: None } => {
            let status: Status = get(arguments, proto::STATUS).await?;
            Ok(show(arguments, &status.instances, |instances| {
                print::vrrp(instances) + &notify::groups(&status.sync_groups)
            }))
        }
        Command::Doctor => {
            let diagnosis: Diagnosis = get(arguments, proto::DOCTOR).await?;
            if !diagnosis.findings.is_empty() {
                *code = ExitCode::FAILURE;
            }
            Ok(show(arguments, &diagnosis, doctor::print))
        }
        Command::Events { follow, since } => {
            if *follow {
                return events::follow(&arguments.socket, arguments.json, *since).await;
            }
            let page = events::page(&arguments.socket, *since).await?;
            Ok(show(arguments, &page, events::print))
        }
        Command::Map {
            command: MapCommand::List,
        } => {
            let maps: Vec<TableInfo> = get(arguments, proto::MAPS).await?;
            Ok(show(arguments, &maps, |maps| print::maps(maps)))
        }
        Command::Map {
            command: MapCommand::Dump { name },
        } => {
            let dumps = dumps(arguments, name.as_deref()).await?;
            Ok(show(arguments, &dumps, |dumps| print::dumps(dumps)))
        }
        Command::Backend { command } => {
            let (meant, action, weight) = match command {
                BackendCommand::Drain(meant) => (meant, "drain", None),
                BackendCommand::Enable(meant) => (meant, "enable", None),
                BackendCommand::Weight { meant, weight } => {
                    (meant, "weight", Some(weight.to_string()))
                }
            };
            let path = query(
                proto::STEER,
                &[
                    ("backend", Some(meant.address.clone())),
                    ("service", meant.service.clone()),
                    ("action", Some(action.to_owned())),
                    ("weight", weight),
                ],
            );
            let steered: Steered = client::call(&arguments.socket, Method::POST, &path).await?;
            Ok(show(arguments, &steered, print::steered))
        }
        Command::Dataplane { which } => {
            let wanted = which.to_possible_value().map(|v| v.get_name().to_owned());
            let path = query(proto::DATA_PLANE, &[("use", wanted)]);
            let steered: Steered = client::call(&arguments.socket, Method::POST, &path).await?;
            Ok(show(arguments, &steered, print::steered))
        }
        Command::Flows {
            client,
            service,
            backend,
            offset,
            limit,
        } => {
            let path = query(
                proto::FLOWS,
                &[
                    ("client", client.clone()),
                    ("service", service.clone()),
                    ("backend", backend.clone()),
                    ("offset", Some(offset.to_string())),
                    ("limit", Some(limit.to_string())),
                ],
            );
            let page: FlowPage = get(arguments, &path).await?;
            Ok(show(arguments, &page, print::flows))
        }
        Command::Why {
            client,
            vip,
            protocol,
        } => {
            let path = query(
                proto::WHY,
                &[
                    ("client", Some(client.clone())),
                    ("vip", Some(vip.clone())),
                    ("protocol", Some(protocol.clone())),
                ],
            );
            let why: Why = get(arguments, &path).await?;
            Ok(show(arguments, &why, print::why))
        }
        Command::Capture {
            client,
            service,
            backend,
            only,
            count,
            snap_length,
            write,
        } => {
            let path = query(
                proto::CAPTURE,
                &[
                    ("client", client.clone()),
                    ("service", service.clone()),
                    ("backend", backend.clone()),
                    ("only", only.clone()),
                    ("count", count.map(|count| count.to_string())),
                    ("snap_length", Some(snap_length.to_string())),
                ],
            );
            capture::run(&arguments.socket, &path, write).await
        }
        Command::Reload { dry_run } => {
            let path = format!("{}?dry_run={dry_run}", proto::RELOAD);
            let reload: Reload = client::call(&arguments.socket, Method::POST, &path).await?;
            Ok(show(arguments, &reload, |reload| {
                print::reload(reload, *dry_run)
            }))
        }
    }
}

/// A path with those parameters that are given.
fn query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let encoded = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(given)
        .finish();
    format!("{path}?{encoded}")
}

async fn dumps(arguments: &Arguments, name: Option<&str>) -> Result<Vec<MapDump>, ClientError> {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => {
            let maps: Vec<TableInfo> = get(arguments, proto::MAPS).await?;
            maps.into_iter().map(|map| map.name).collect()
        }
    };
    let mut dumps = Vec::with_capacity(names.len());
    for name in names {
        dumps.push(get(arguments, &proto::MAP.replace("{name}", &name)).await?);
    }
    Ok(dumps)
}

async fn get<T: DeserializeOwned>(arguments: &Arguments, path: &str) -> Result<T, ClientError> {
    client::call(&arguments.socket, Method::GET, path).await
}

fn show<T: Serialize>(arguments: &Arguments, document: &T, text: impl Fn(&T) -> String) -> String {
    if arguments.json {
        let json = serde_json::to_string_pretty(document).unwrap_or_default();
        return format!("{json}\n");
    }
    text(document)
}
