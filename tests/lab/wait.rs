//! Waiting for something to become true.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks every 20 ms until `ask` has an answer; an error names `what` and the last thing seen.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let answer = ask();
        if let Ok(Some(value)) = answer {
            return Ok(value);
        }
        if Instant::now() >= end {
            match answer {
                Err(error) => return Err(error.context(format!("waited {limit:?} for: {what}"))),
                Ok(_) => bail!("waited {limit:?} for: {what}"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`until`], for something that is true or not.
pub fn until_true(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, limit, || Ok(ask()?.then_some(())))
}
