//! A real mail server, aiosmtpd, and an authority that vouches for it.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{Lab, Node, Process, network::run, wait};

/// Debian's, which knows Debian's package `python3-aiosmtpd`.
const PYTHON: &str = "/usr/bin/python3";

/// How the server behaves.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// "none", "starttls" or "tls".
    pub tls: &'static str,
    /// Its certificate, where it has one.
    pub certificate: Option<PathBuf>,
    /// The key of that.
    pub key: Option<PathBuf>,
    /// Whom it lets send; everybody when absent.
    pub user: Option<&'static str>,
    /// And with which password.
    pub password: Option<&'static str>,
    /// A recipient that it refuses.
    pub reject: Option<&'static str>,
    /// It accepts connections and says nothing.
    pub silent: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: "none",
            certificate: None,
            key: None,
            user: None,
            password: None,
            reject: None,
            silent: false,
        }
    }
}

/// A mail as it came.
#[derive(Clone, Debug, Deserialize)]
pub struct Received {
    /// Sender of the envelope.
    pub from: String,
    /// Recipients of the envelope.
    pub to: Vec<String>,
    /// Headers, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Text.
    pub body: String,
    /// Whether it came encrypted.
    pub encrypted: bool,
    /// Whether the sender had logged in.
    pub authenticated: bool,
    /// What the sender called itself.
    pub hello: String,
}

/// A running server.
pub struct MailServer {
    /// Its port, on the node's address.
    pub port: u16,
    mails: PathBuf,
    _process: Process,
}

impl MailServer {
    /// Starts a server on `node`.
    pub fn start(lab: &Lab, node: &Node, port: u16, settings: &Settings) -> Result<Self> {
        let path = |suffix: &str| lab.directory().join(format!("smtp-{port}.{suffix}"));
        let (script, mails, file) = (path("py"), path("mails"), path("json"));
        fs::write(&script, include_str!("smtp_server.py"))?;
        fs::write(&mails, "")?;
        fs::write(&file, serde_json::to_string(settings)?)?;
        let text = |path: &PathBuf| path.display().to_string();
        let arguments = [
            text(&script),
            node.address.to_string(),
            port.to_string(),
            text(&mails),
            text(&file),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = format!("smtp-{port}");
        let process = Process::start(lab, node, &name, PYTHON.as_ref(), &arguments)?;
        wait::until_true("the mail server is ready", Duration::from_secs(10), || {
            let log = process.log();
            anyhow::ensure!(!log.contains("Error"), "{log}");
            Ok(log.contains("ready"))
        })?;
        Ok(Self {
            port,
            mails,
            _process: process,
        })
    }

    /// Every mail so far.
    pub fn mails(&self) -> Result<Vec<Received>> {
        let text = fs::read_to_string(&self.mails)?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("a mail"))
            .collect()
    }

    /// Subjects of all mails so far.
    pub fn subjects(&self) -> Result<Vec<String>> {
        let subject = |mail: &Received| mail.headers.get("subject").cloned().unwrap_or_default();
        Ok(self.mails()?.iter().map(subject).collect())
    }

    /// Waits until mails with these subjects have come, and no others.
    pub fn wait_for(&self, subjects: &[&str]) -> Result<()> {
        let done = wait::until_true("the mails", Duration::from_secs(15), || {
            Ok(self.subjects()? == subjects)
        });
        let seen = self.subjects()?;
        done.with_context(|| format!("expected {subjects:?}, seen {seen:?}"))
    }
}

/// An authority with a certificate and a key for a server at `address`, made by openssl.
pub struct Authority {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes all of it. `name` keeps it apart from others.
    pub fn new(lab: &Lab, name: &str, address: &str) -> Result<Self> {
        let path = |suffix: &str| lab.directory().join(format!("{name}-{suffix}"));
        let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
        let (certificate, key, request) =
            (path("server.pem"), path("server.key"), path("server.csr"));
        let extensions = path("server.ext");
        fs::write(
            &extensions,
            format!("subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n"),
        )?;
        let text = |path: &PathBuf| path.display().to_string();
        let curve = "ec_paramgen_curve:prime256v1";
        let new_key = ["-newkey", "ec", "-pkeyopt", curve, "-nodes"];
        let subject = format!("/CN=authority {name}");
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-days", "2", "-subj", &subject]);
        command.args(new_key);
        command.args(["-keyout", &text(&ca_key), "-out", &text(&ca)]);
        run(&mut command)?;
        let mut command = Command::new("openssl");
        command.args(["req", "-subj", "/CN=mail"]).args(new_key);
        command.args(["-keyout", &text(&key), "-out", &text(&request)]);
        run(&mut command)?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-days", "2", "-CAcreateserial"]);
        command.args(["-in", &text(&request), "-out", &text(&certificate)]);
        command.args(["-CA", &text(&ca), "-CAkey", &text(&ca_key)]);
        command.args(["-extfile", &text(&extensions)]);
        run(&mut command)?;
        Ok(Self {
            ca,
            certificate,
            key,
        })
    }
}
