//! Which checks ask for the VIP on a real server, and by which mark. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::probe::MAX_PROBES;

use super::plan::{Job, Via};
use crate::model::{Config, Forwarding, ProbePath, ProbeStyle, Tunnel};

/// The paths in use. One keeps its number, and with it its checks go on, for as long as it is needed.
#[derive(Debug, Default)]
pub struct Paths {
    numbers: HashMap<Way, u16>,
}

/// VIP, real server, and the tunnel that leads there, if one does.
type Way = (IpAddr, IpAddr, Option<Tunnel>);

impl Paths {
    /// Sends those of `jobs` to the VIP that want it and can reach it there. `sees` says whether the data
    /// plane sees packets to a VIP on a host, and `source` which address of ours they should have. Returns all
    /// paths.
    pub fn lead(
        &mut self,
        config: &Config,
        jobs: &mut [Job],
        style: ProbeStyle,
        sees: impl Fn(IpAddr, IpAddr) -> bool,
        source: impl Fn(IpAddr, IpAddr) -> Option<IpAddr>,
    ) -> Vec<ProbePath> {
        let services = config.services.iter();
        let forwarding: HashMap<_, _> = services.map(|s| (s.id, s.forwarding)).collect();
        let way = |job: &Job| -> Option<Way> {
            let (service, host) = job.subject;
            let tunnel = match forwarding.get(&service)? {
                Forwarding::Dr => None,
                Forwarding::Tunnel(tunnel) => Some(*tunnel),
                // The real server has no VIP.
                Forwarding::Nat => return None,
            };
            let fits = job.check.on_vip
                && job.target.port() != 0
                && service.address.is_ipv4() == host.is_ipv4();
            (fits && sees(service.address, host)).then_some((service.address, host, tunnel))
        };
        let ways: Vec<Option<Way>> = jobs.iter().map(way).collect();
        let wanted: BTreeSet<Way> = ways.iter().flatten().copied().collect();
        self.numbers.retain(|way, _| wanted.contains(way));
        let taken: BTreeSet<u16> = self.numbers.values().copied().collect();
        let mut free = (0..=u16::MAX)
            .take(MAX_PROBES as usize)
            .filter(|number| !taken.contains(number));
        for way in &wanted {
            if !self.numbers.contains_key(way)
                && let Some(number) = free.next()
            {
                self.numbers.insert(*way, number);
            }
        }
        for (job, way) in jobs.iter_mut().zip(ways) {
            if let Some((path, way)) = way.and_then(|way| Some((self.path(&way)?, way))) {
                job.target.set_ip(way.0);
                job.via = Some(Via {
                    host: way.1,
                    mark: path.mark(),
                    source: source(way.0, way.1),
                    ports: (style == ProbeStyle::Scheduled).then(|| path.ports()),
                });
            }
        }
        wanted.iter().filter_map(|way| self.path(way)).collect()
    }

    fn path(&self, way: &Way) -> Option<ProbePath> {
        let (vip, host, tunnel) = *way;
        self.numbers.get(way).map(|index| ProbePath {
            index: *index,
            vip,
            host,
            tunnel,
        })
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{config, health::plan::jobs};

    fn config(servers: &[u8], check: &str) -> Config {
        let backends: String = servers
            .iter()
            .map(|last| format!("[[service.backend]]\naddress = \"10.0.0.{last}\"\n"))
            .collect();
        let text = format!(
            "[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\naddress = \"192.0.2.1:80\"\n\
             [service.check]\ntype = \"tcp\"\n{check}\n{backends}"
        );
        config::parse("test", &text, "host").expect("valid")
    }

    fn led(paths: &mut Paths, config: &Config) -> (Vec<String>, Vec<u16>) {
        let mut all = jobs(config);
        let held = paths.lead(
            config,
            &mut all,
            ProbeStyle::Rewritten,
            |_, host| host != IpAddr::from([10, 0, 0, 9]),
            |_, _| None,
        );
        let targets = all.iter().map(|job| match job.via {
            Some(via) => format!("{} on {} by {:#x}", job.target, via.host, via.mark),
            None => job.target.to_string(),
        });
        (
            targets.collect(),
            held.iter().map(|path| path.index).collect(),
        )
    }

    #[test]
    fn who_is_asked_for_the_vip() {
        let on_vip = ["192.0.2.1:80 on 10.0.0.1 by 0x6c620000"];
        let at_home = ["10.0.0.1:80"];
        for (check, targets) in [
            ("", &on_vip[..]),
            ("target = \"vip\"", &on_vip),
            ("target = \"address\"", &at_home),
            ("port = 8080", &["10.0.0.1:8080"]),
            (
                "port = 8080\ntarget = \"vip\"",
                &["192.0.2.1:8080 on 10.0.0.1 by 0x6c620000"],
            ),
            ("address = \"10.1.1.1\"", &["10.1.1.1:80"]),
        ] {
            let (seen, _) = led(&mut Paths::default(), &config(&[1], check));
            assert_eq!(seen, targets, "{check}");
        }
    }

    #[test]
    fn out_of_the_data_planes_sight_the_own_address_is_asked() {
        let (seen, held) = led(&mut Paths::default(), &config(&[1, 9], ""));
        assert_eq!(
            seen,
            ["192.0.2.1:80 on 10.0.0.1 by 0x6c620000", "10.0.0.9:80"]
        );
        assert_eq!(held, [0]);
    }

    #[test]
    fn a_path_keeps_its_number() {
        let mut paths = Paths::default();
        led(&mut paths, &config(&[1, 2, 3], ""));
        led(&mut paths, &config(&[1, 3], ""));
        let (seen, _) = led(&mut paths, &config(&[1, 3, 4], ""));
        assert_eq!(
            seen,
            [
                "192.0.2.1:80 on 10.0.0.1 by 0x6c620000",
                "192.0.2.1:80 on 10.0.0.3 by 0x6c620002",
                "192.0.2.1:80 on 10.0.0.4 by 0x6c620001",
            ]
        );
    }
}
