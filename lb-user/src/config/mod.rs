//! The configuration file: TOML, strict, all errors at once with their places.
//!
//! `raw` mirrors the file, `validate` turns it into a [`model::Config`](crate::model::Config) that
//! is always valid. Pure: the caller reads the file.

mod diagnostic;
mod diff;
pub mod keys;
mod raw;
mod reader;
pub mod sources;
mod validate;

pub use diagnostic::{ConfigError, Diagnostic};
pub use diff::{changes, needs_restart};

use crate::model::Config;

/// Parses and validates `text`, which came from `file` (used in errors only).
pub fn parse(file: &str, text: &str, host_name: &str) -> Result<Config, ConfigError> {
    let (raw, mut diagnostics) = raw::read(text);
    let config = validate::validate(raw, host_name, &mut diagnostics);
    if diagnostics.is_empty() {
        return Ok(config);
    }
    Err(ConfigError::new(file, text, diagnostics))
}

#[cfg(test)]
mod tests;
