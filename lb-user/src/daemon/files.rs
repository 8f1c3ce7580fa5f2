//! The configuration file, and the files that it names.

use std::{collections::HashMap, os::unix::fs::PermissionsExt, path::Path};

use super::DaemonError;
use crate::{
    config,
    model::{Auth, Config, Secret, SourceRule},
};

/// Reads and validates a configuration file.
pub fn load_config(path: &Path) -> Result<Config, DaemonError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| DaemonError::ReadConfig {
        path: name.clone(),
        source,
    })?;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let mut config = config::parse(&name, &text, &host)?;
    read_sources(&mut config)?;
    read_keys(&mut config)?;
    read_mail_files(&mut config)?;
    Ok(config)
}

/// Fills in the keys that stand in files of their own.
fn read_keys(config: &mut Config) -> Result<(), DaemonError> {
    for instance in &mut config.instances {
        let Auth::Hmac(hmac) = &mut instance.auth else {
            continue;
        };
        for key in &mut hmac.keys {
            let Some(path) = &key.file else { continue };
            let name = path.display().to_string();
            let read = || -> std::io::Result<(String, u32)> {
                let mode = std::fs::metadata(path)?.permissions().mode();
                Ok((std::fs::read_to_string(path)?, mode))
            };
            let (text, mode) = read().map_err(|source| DaemonError::ReadConfig {
                path: name.clone(),
                source,
            })?;
            if mode & 0o077 != 0 {
                tracing::warn!(
                    file = name,
                    "others than its owner may read this key: `chmod 600` it"
                );
            }
            let bytes = config::keys::parse(text.trim_end_matches(['\n', '\r']))
                .map_err(|why| DaemonError::BadKey { path: name, why })?;
            key.secret = Secret::new(bytes);
        }
    }
    Ok(())
}

/// Fills in certificates and password of the way to the mail server.
fn read_mail_files(config: &mut Config) -> Result<(), DaemonError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| DaemonError::ReadConfig {
            path: path.display().to_string(),
            source,
        })
    };
    let Some(mail) = &mut config.mail else {
        return Ok(());
    };
    if let Some(ca) = &mut mail.ca {
        ca.text = read(&ca.path)?;
        if !crate::notify::mail::has_certificates(&ca.text) {
            return Err(DaemonError::NoCertificates(ca.path.display().to_string()));
        }
    }
    if let Some(login) = &mut mail.login
        && let Some(path) = &login.file
    {
        // Editors end a file with a newline that is not part of the password.
        login.password.0 = read(path)?.trim_end_matches(['\r', '\n']).to_owned();
    }
    Ok(())
}

/// Adds what files list to the sources of the configuration. What the configuration itself says of a
/// prefix wins.
fn read_sources(config: &mut Config) -> Result<(), DaemonError> {
    let protection = &mut config.dataplane.protection;
    let mut sources: HashMap<_, SourceRule> = HashMap::new();
    for (path, rule) in &protection.files {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| DaemonError::ReadConfig {
            path: name.clone(),
            source,
        })?;
        let prefixes = config::sources::parse(&text).map_err(|bad| DaemonError::BadSource {
            path: name,
            line: bad.number,
            text: bad.text,
        })?;
        sources.extend(prefixes.into_iter().map(|prefix| (prefix, *rule)));
    }
    sources.extend(protection.sources.drain(..));
    let most = lb_common::limits::MAX_PREFIXES as usize;
    if sources.len() > most {
        return Err(DaemonError::TooManySources {
            count: sources.len(),
            most,
        });
    }
    protection.sources = sources.into_iter().collect();
    protection.sources.sort_unstable();
    Ok(())
}
