//! An external command, with the exit codes of keepalived's MISC_CHECK: 0 is success, 1 is failure; with
//! a dynamic weight, 2 to 255 are success with a weight of two less than the code, and without one
//! failure. It runs as the account of scripts, without a shell.

use std::{io, time::Duration};

use thiserror::Error;

use super::{Place, Verdict};
use crate::{
    model::{Advice, ExecCheck},
    script::{self, Account},
};

/// Why a command did not succeed.
#[derive(Debug, Error)]
pub enum ExecError {
    /// It cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: String,
        /// What failed.
        source: io::Error,
    },
    /// It ran too long.
    #[error("{program} was killed after {limit:?}")]
    Killed {
        /// The program.
        program: String,
        /// How long it may run.
        limit: Duration,
    },
    /// It says no.
    #[error("{program} ended with {status}{}{stderr}", if stderr.is_empty() { "" } else { ": " })]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// The beginning of its standard error.
        stderr: String,
    },
}

pub(super) async fn attempt(
    place: &Place,
    check: &ExecCheck,
    account: Account,
) -> Result<Verdict, ExecError> {
    let program = || check.command.first().cloned().unwrap_or_default();
    // A whole attempt that ends earlier ends the command, too: the runner kills what nobody waits for.
    let limit = place.limits.answer;
    let (status, stderr) = script::run_to_end(&check.command, limit, account)
        .await
        .map_err(|source| ExecError::Run {
            program: program(),
            source,
        })?
        .ok_or_else(|| ExecError::Killed {
            program: program(),
            limit,
        })?;
    match status.code() {
        Some(0) => Ok(Verdict::passed()),
        Some(code @ 2..=255) if check.dynamic_weight => Ok(Verdict {
            advice: Some(Advice::Weight(code.unsigned_abs() - 2)),
            ..Verdict::passed()
        }),
        Some(_) | None => Err(ExecError::Failed {
            program: program(),
            status: status.to_string(),
            stderr,
        }),
    }
}
