//! Real servers that answer no client, as far as the data plane can tell: a hint to their checks, and to operators.

use std::net::IpAddr;

use super::Daemon;
use crate::{
    dataplane::{DataPlane, silence::Silence},
    events::Kind,
    health::state::Health,
    model::{ServiceId, Target},
};

impl Daemon {
    /// Sweeps the data plane's flows. What is seen of real servers there is a hint to their checks: it lets
    /// them be made at once, and decides nothing.
    pub(super) fn sweep(&mut self) {
        self.data_plane.sweep();
        for text in self.data_plane.take_repairs() {
            self.event(Kind::DataPlane, "", text);
        }
        for (service, address, silence) in self.silent() {
            if self.checks.hurry(&(service, address)) {
                let text = format!(
                    "real server {address}: {}; its checks are made at once",
                    unanswered(silence)
                );
                tracing::info!("{service}: {text}");
                self.event(Kind::Health, &service.to_string(), text);
            }
        }
    }

    /// Real servers that are up by their checks, and that most new connections get no answer from.
    fn silent(&self) -> Vec<(ServiceId, IpAddr, Silence)> {
        let all = self.data_plane.silent().into_iter();
        all.filter_map(|((service, target, sorry), silence)| {
            let address = match target {
                Target::Host(address) if !sorry => address,
                Target::Host(_) | Target::Local => return None,
            };
            let record = self.health.get(&(service, address))?;
            (record.health == Health::Up).then_some((service, address, silence))
        })
        .collect()
    }

    /// The same in words.
    pub(super) fn silence_problems(&self) -> Vec<String> {
        let line = |(service, address, silence): (ServiceId, IpAddr, Silence)| {
            format!(
                "{service}: real server {address} is up by its checks, but {}: does it answer clients? (A flood of SYNs looks the same.)",
                unanswered(silence)
            )
        };
        self.silent().into_iter().map(line).collect()
    }
}

fn unanswered(silence: Silence) -> String {
    let Silence {
        unanswered,
        connections,
    } = silence;
    format!("{unanswered} of {connections} new connections got no further than their first packet")
}
