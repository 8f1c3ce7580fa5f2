//! Shows and steers a running lbd. Knows only the API.

mod print;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use hyper::Method;
use lb_user::api::{
    client::{self, ClientError},
    proto::{self, MapDump, Reload, Status, TableInfo},
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
    },
    /// VRRP instances with timers, peers and counters.
    Vrrp,
    /// BPF maps.
    Map {
        #[command(subcommand)]
        command: MapCommand,
    },
    /// Make lbd read its configuration again.
    Reload {
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
    },
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
    match run(&arguments).await {
        Ok(text) => {
            use std::io::Write;
            // A reader that closes the pipe early has seen what it wanted.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
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
                ClientError::Refused(_) | ClientError::Nonsense(_) => ExitCode::FAILURE,
            }
        }
    }
}

async fn run(arguments: &Arguments) -> Result<String, ClientError> {
    match &arguments.command {
        Command::Status => {
            let status: Status = get(arguments, proto::STATUS).await?;
            Ok(show(arguments, &status, print::status))
        }
        Command::Services { stats } => {
            let status: Status = get(arguments, proto::STATUS).await?;
            let table = if *stats {
                print::service_stats
            } else {
                print::services
            };
            Ok(show(arguments, &status.data_plane, table))
        }
        Command::Vrrp => {
            let status: Status = get(arguments, proto::STATUS).await?;
            Ok(show(arguments, &status.instances, |instances| {
                print::vrrp(instances)
            }))
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
        Command::Reload { dry_run } => {
            let path = format!("{}?dry_run={dry_run}", proto::RELOAD);
            let reload: Reload = client::call(&arguments.socket, Method::POST, &path).await?;
            Ok(show(arguments, &reload, |reload| {
                print::reload(reload, *dry_run)
            }))
        }
    }
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
