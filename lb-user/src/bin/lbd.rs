//! The daemon's command line.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use lb_user::daemon::{self, DaemonError};
use tracing_subscriber::EnvFilter;

/// Layer-4 load balancer: XDP direct return, VRRP, health checks.
#[derive(Parser)]
#[command(name = "lbd", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.toml")]
    config: PathBuf,
    /// Only check the configuration: exit with 0 if it is valid, with 4 if not.
    #[arg(long)]
    check: bool,
}

/// Exit code for a configuration that is not valid.
const INVALID_CONFIG: u8 = 4;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if arguments.check {
        daemon::load_config(&arguments.config).map(|config| {
            println!(
                "{}: valid; {} VRRP instances, {} services",
                arguments.config.display(),
                config.instances.len(),
                config.services.len()
            );
            for service in config
                .services
                .iter()
                .filter(|service| service.instance.is_none())
            {
                println!(
                    "note: no VRRP instance has the address of service {}: it is served always",
                    service.id
                );
            }
        })
    } else {
        start(&arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ DaemonError::Config(_)) => {
            eprintln!("{error}");
            ExitCode::from(INVALID_CONFIG)
        }
        Err(error) => {
            eprintln!("lbd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<(), DaemonError> {
    let filter = EnvFilter::try_from_env("LBD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // Two threads: the daemon's own task, and checks that must not wait for it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System {
            what: "start the runtime",
            source,
        })?;
    let result = runtime.block_on(daemon::run(&arguments.config));
    // The look-up of a mail server's name may hang in a thread that nothing can stop.
    runtime.shutdown_background();
    result
}
