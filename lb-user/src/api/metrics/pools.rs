//! Metrics of pools of real servers.

use prometheus_client::registry::Registry;

use super::{OfServer, OfService, numbers, service_name};
use crate::api::proto::Status;

pub(super) fn pools(registry: &mut Registry, status: &Status) {
    let quorum = numbers(
        registry,
        "service_quorum",
        "1 while enough weight of the service's real servers is alive",
    );
    let needed = numbers(
        registry,
        "service_quorum_weight",
        "Weight that must be alive",
    );
    let live = numbers(
        registry,
        "service_live_weight",
        "Weight of the service's real servers in use",
    );
    let panic = numbers(
        registry,
        "service_panic",
        "1 while too many real servers failed at once and are kept",
    );
    let kept = numbers(
        registry,
        "service_servers_kept",
        "Real servers that are kept although their checks fail",
    );
    let ratio = numbers(
        registry,
        "server_weight_ratio",
        "What a real server has of its weight: less than 1 for a time after a return",
    );
    for pool in &status.pools {
        let of = OfService {
            service: pool.service.clone(),
        };
        let flag = |value: bool| f64::from(u8::from(value));
        quorum.get_or_create(&of).set(flag(pool.has_quorum));
        needed.get_or_create(&of).set(f64::from(pool.quorum));
        live.get_or_create(&of).set(pool.live_weight as f64);
        panic
            .get_or_create(&of)
            .set(flag(pool.panic_since.is_some()));
        kept.get_or_create(&of).set(pool.kept.len() as f64);
        let services = status.data_plane.services.iter();
        let servers = services
            .filter(|service| service_name(service) == pool.service)
            .flat_map(|service| &service.backends);
        for server in servers.filter(|server| !server.sorry) {
            let mut growing = pool.growing.iter();
            let grows = growing.find(|growing| growing.backend == server.address);
            let of = OfServer {
                service: pool.service.clone(),
                server: server.address.clone(),
                sorry: false.to_string(),
            };
            ratio
                .get_or_create(&of)
                .set(grows.map_or(1.0, |growing| f64::from(growing.percent) / 100.0));
        }
    }
}
