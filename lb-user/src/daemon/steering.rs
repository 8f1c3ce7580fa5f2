//! What operators tell of real servers while the daemon runs: drained, or of another weight. It lasts
//! until changed, or until a reload.

use std::net::IpAddr;

use super::Daemon;
use crate::{
    api::proto::{Failure, Steer, SteerAction, Steered},
    dataplane::plan::Steering,
    model::ServiceId,
};

impl Daemon {
    /// Does what was asked for every service that is meant.
    pub(super) fn steer(&mut self, request: &Steer) -> Result<Steered, Failure> {
        let refuse = |error: String| Failure {
            error,
            invalid_config: false,
        };
        let address: IpAddr = request
            .backend
            .parse()
            .map_err(|_| refuse(format!("`{}` is not an IP address", request.backend)))?;
        if let SteerAction::Weight { weight } = request.action
            && weight > 65_535
        {
            return Err(refuse(format!(
                "weight {weight} is out of range: 0 to 65535"
            )));
        }
        let meant: Vec<ServiceId> = self
            .config
            .services
            .iter()
            .filter(|service| service.backends.iter().any(|b| b.address == address))
            .map(|service| service.id)
            .filter(|id| {
                request
                    .service
                    .as_deref()
                    .is_none_or(|name| id.is_called(name))
            })
            .collect();
        if meant.is_empty() {
            let of = match &request.service {
                Some(service) => format!("of {service}"),
                None => "of any service".to_owned(),
            };
            return Err(refuse(format!(
                "{address} is no real server {of}; `lbctl services` lists them"
            )));
        }
        let before = self.steered.clone();
        let mut changes = Vec::new();
        for id in meant {
            let key = (id, address);
            let change = match request.action {
                SteerAction::Drain => {
                    self.steered.insert(key, Steering::Drain);
                    "drained: it keeps its connections and gets no new ones".to_owned()
                }
                SteerAction::Enable => {
                    self.steered.remove(&key);
                    "as configured".to_owned()
                }
                SteerAction::Weight { weight } => {
                    self.steered.insert(key, Steering::Weight(weight));
                    format!("weight {weight}")
                }
            };
            changes.push(format!("{id}: {address} {change}"));
        }
        let reason = format!("operator: {}", changes.join("; "));
        if let Err(error) = self.apply(&reason) {
            self.steered = before;
            return Err(refuse(error.to_string()));
        }
        tracing::info!("{reason}");
        Ok(Steered { changes })
    }

    /// What differs from the configuration, for the status.
    pub(super) fn steered_lines(&self) -> Vec<String> {
        self.steered
            .iter()
            .map(|((service, address), steering)| match steering {
                Steering::Drain => format!("{service}: {address} is drained by an operator"),
                Steering::Weight(weight) => {
                    format!("{service}: {address} has weight {weight} from an operator")
                }
            })
            .collect()
    }
}
