//! What operators tell of real servers while the daemon runs: drained, or of another weight. It lasts
//! until changed, or until a reload. And what they tell of VRRP instances, which lasts until reset.

use std::net::IpAddr;

use super::Daemon;
use crate::{
    api::proto::{Failure, Steer, SteerAction, Steered, VrrpAction, VrrpOrder},
    dataplane::plan::Steering,
    events::Kind,
    model::ServiceId,
    net::announcing::Occasion,
    vrrp::runner::Order,
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
        for change in &changes {
            let (service, text) = change.split_once(": ").unwrap_or(("", change));
            self.event(Kind::Operator, service, text);
        }
        Ok(Steered { changes })
    }

    /// Gives a VRRP instance an order.
    pub(super) async fn order(&mut self, request: &VrrpOrder) -> Result<Steered, Failure> {
        let refuse = |error: String| Failure {
            error,
            invalid_config: false,
        };
        let name = &request.instance;
        let Some(instance) = self.config.instances.iter().find(|i| i.name == *name) else {
            let known: Vec<&str> = self
                .config
                .instances
                .iter()
                .map(|i| i.name.as_str())
                .collect();
            let known = known.join(", ");
            return Err(refuse(format!(
                "there is no VRRP instance {name}; there is: {known}"
            )));
        };
        let (order, change) = match request.action {
            VrrpAction::Announce => {
                if !self
                    .addresses
                    .announce(name, Occasion::Promotion, &self.interfaces)
                {
                    return Err(refuse(format!(
                        "{name} is not MASTER here: nothing to announce"
                    )));
                }
                self.event(Kind::Operator, name, "addresses announced");
                let changes = vec![format!("{name}: addresses announced")];
                return Ok(Steered { changes });
            }
            VrrpAction::Priority { priority } => {
                let priority = u8::try_from(priority).unwrap_or(0);
                if !(1..=254).contains(&priority) {
                    return Err(refuse("the priority must be 1 to 254".to_owned()));
                }
                let change = format!("priority {priority} until `lbctl vrrp reset {name}`");
                (Order::Priority(priority), change)
            }
            VrrpAction::Failover => {
                let change = format!(
                    "yields, and keeps the lowest priority until `lbctl vrrp reset {name}`"
                );
                (Order::Failover, change)
            }
            VrrpAction::Reset => {
                let change = format!("priority {} as configured", instance.priority);
                (Order::Reset, change)
            }
        };
        let done = match &self.vrrp {
            Some(vrrp) => vrrp.order(name, order).await,
            None => false,
        };
        if !done {
            return Err(refuse(format!("{name} does not run")));
        }
        self.event(Kind::Operator, name, change.clone());
        let change = format!("{name}: {change}");
        tracing::info!("operator: {change}");
        Ok(Steered {
            changes: vec![change],
        })
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
