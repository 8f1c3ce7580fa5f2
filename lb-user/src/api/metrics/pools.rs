//! Metrics of pools of real servers.

use prometheus_client::registry::Registry;

use super::{OfServer, OfService, flag, gauge, service_name};
use crate::api::proto::{PoolStatus, Status};

pub(super) fn pools(registry: &mut Registry, status: &Status) {
    let gauges = |value: fn(&PoolStatus) -> f64| {
        status.pools.iter().map(move |pool| {
            let service = pool.service.clone();
            (OfService { service }, value(pool))
        })
    };
    let help = "1 while enough weight of the service's real servers is alive";
    let quorum = gauges(|pool| flag(pool.has_quorum));
    gauge(registry, "service_quorum", help, quorum);
    let help = "Weight that must be alive";
    let needed = gauges(|pool| f64::from(pool.quorum));
    gauge(registry, "service_quorum_weight", help, needed);
    let help = "Weight of the service's real servers in use";
    let live = gauges(|pool| pool.live_weight as f64);
    gauge(registry, "service_live_weight", help, live);
    let help = "1 while too many real servers failed at once and are kept";
    let panic = gauges(|pool| flag(pool.panic_since.is_some()));
    gauge(registry, "service_panic", help, panic);
    let help = "Real servers that are kept although their checks fail";
    let kept = gauges(|pool| pool.kept.len() as f64);
    gauge(registry, "service_servers_kept", help, kept);
    let ratios = status.pools.iter().flat_map(|pool| ratios(status, pool));
    let help = "What a real server has of its weight: less than 1 for a time after a return";
    gauge(registry, "server_weight_ratio", help, ratios);
}

fn ratios(status: &Status, pool: &PoolStatus) -> impl Iterator<Item = (OfServer, f64)> {
    let services = status.data_plane.services.iter();
    let servers = services
        .filter(|service| service_name(service) == pool.service)
        .flat_map(|service| &service.backends);
    servers.filter(|server| !server.sorry).map(|server| {
        let mut growing = pool.growing.iter();
        let grows = growing.find(|growing| growing.backend == server.address);
        let of = OfServer {
            service: pool.service.clone(),
            server: server.address.clone(),
            sorry: false.to_string(),
        };
        let ratio = grows.map_or(1.0, |growing| f64::from(growing.percent) / 100.0);
        (of, ratio)
    })
}
