//! What `lbctl doctor` found.

use serde::{Deserialize, Serialize};

/// `GET`: a [`Diagnosis`]. Takes half a second: it listens for answers.
pub const DOCTOR: &str = "/v1/doctor";

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What is wrong, worst first.
    pub findings: Vec<Finding>,
    /// What was looked at, whether it is well or not.
    pub examined: Vec<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: a real server, an interface, this host.
    pub subject: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do; empty where that is for the operator to say.
    pub cure: String,
}
