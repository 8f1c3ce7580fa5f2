//! Sorry servers, and the checks of those on other hosts.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use super::Validator;
use crate::{
    config::reader::At,
    model::{Check, Forwarding, ServiceId, Target, VirtualService},
};

/// They show one page and apologise; more would be a pool of their own.
const MAX_SORRY: usize = 16;

impl Validator<'_> {
    pub(super) fn sorry_servers(
        &mut self,
        raw: Option<At<Vec<At<String>>>>,
        service: ServiceId,
        forwarding: Forwarding,
    ) -> Vec<Target> {
        let mut all = Vec::new();
        for at in raw.into_iter().flat_map(|list| list.value) {
            if all.len() == MAX_SORRY {
                let message = format!("more than {MAX_SORRY} sorry servers");
                self.error(&at.span, message, "");
                break;
            }
            let Some(target) = self.sorry(&at, service, forwarding) else {
                continue;
            };
            if all.contains(&target) {
                self.error(&at.span, format!("duplicate sorry server {}", at.value), "");
            }
            all.push(target);
        }
        all
    }

    fn sorry(
        &mut self,
        at: &At<String>,
        service: ServiceId,
        forwarding: Forwarding,
    ) -> Option<Target> {
        match at.value.as_str() {
            "local" => return Some(Target::Local),
            text => {
                if text
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
                {
                    return Some(Target::Local);
                }
                if let Ok(address) = text.parse::<SocketAddr>()
                    && address.ip().is_loopback()
                {
                    if service.ports.single() != Some(address.port()) {
                        let message = format!(
                            "port {} differs from the service's port {}",
                            address.port(),
                            service.ports
                        );
                        self.error(&at.span, message, "packets reach the director's own stack unchanged; let the sorry server listen on the service's port");
                    }
                    return Some(Target::Local);
                }
            }
        }
        let (address, other) = self.host(at, service, forwarding);
        if let Some(port) = other.filter(|_| forwarding == Forwarding::Nat) {
            let message = format!("port {port} of the sorry server differs from the service's");
            self.error(&at.span, message, "let it listen on the service's port");
        }
        Some(Target::Host(address))
    }

    /// Whom `sorry_check` asks.
    pub(super) fn checked_sorry(
        &mut self,
        service: &VirtualService,
        checks: &[(Check, Range<usize>)],
        place: &Range<usize>,
    ) {
        if service.sorry_hosts().next().is_none() {
            let message = "`sorry_check` without a sorry server on another host";
            let help = "name one in `sorry_server`, or leave the check out: \"local\" is not asked";
            self.error(place, message, help);
        }
        for host in service.sorry_hosts() {
            if service
                .backends
                .iter()
                .any(|backend| backend.address == host)
            {
                let message = format!("`sorry_check`: {host} is a real server of the service too");
                let help = "its own checks say how it is: leave one of the two out";
                self.error(place, message, help);
            }
            self.checks_of(host, checks);
        }
    }
}
