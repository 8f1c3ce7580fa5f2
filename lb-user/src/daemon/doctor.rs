//! Looks for what usually goes wrong around a pair of directors, beyond what `status` knows anyhow.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use super::Daemon;
use crate::{
    api::proto::{Diagnosis, Finding},
    net::arping::{self, Asker},
};

/// How long answers to ARP are waited for: a host on a segment answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(400);

/// One question to a segment.
struct Round {
    interface: String,
    asker: Asker,
    vips: Vec<Ipv4Addr>,
}

impl Daemon {
    /// Answers when the examination is over; the daemon goes on meanwhile.
    pub(super) async fn diagnose(&mut self, answer: oneshot::Sender<Diagnosis>) {
        let status = self.status().await;
        let mut diagnosis = Diagnosis {
            findings: status.problems.iter().map(|p| known(p)).collect(),
            examined: vec!["what `lbctl status` calls a problem".to_owned()],
        };
        for attachment in &status.data_plane.interfaces {
            interface(&attachment.interface, &attachment.mode, &mut diagnosis);
        }
        host(&mut diagnosis);
        let rounds = self.rounds();
        // Answers of the director that is MASTER now, and of this one, are as they should be.
        let masters: Vec<IpAddr> = status
            .instances
            .iter()
            .filter_map(|instance| instance.peer.as_ref())
            .filter_map(|peer| peer.address.parse().ok())
            .collect();
        let own: Vec<[u8; 6]> = self.interfaces.macs().collect();
        let hosts: Vec<(IpAddr, [u8; 6])> = self.real_servers();
        thread::spawn(move || {
            for round in rounds {
                let asked: Vec<String> = round.vips.iter().map(Ipv4Addr::to_string).collect();
                let what = format!(
                    "who answers ARP for {} on {}",
                    asked.join(", "),
                    round.interface
                );
                match arping::who_has(round.asker, &round.vips, PATIENCE) {
                    Ok(heard) => {
                        diagnosis.examined.push(what);
                        for (vip, mac) in heard {
                            let usurpers = hosts.iter().filter(|(host, known)| {
                                *known == mac && !masters.contains(host) && !own.contains(&mac)
                            });
                            let usurpers = usurpers.map(|(host, _)| usurper(*host, mac, vip));
                            diagnosis.findings.extend(usurpers);
                        }
                    }
                    Err(error) => diagnosis.examined.push(format!("not {what}: {error}")),
                }
            }
            let _ = answer.send(diagnosis);
        });
    }

    /// Every segment with a VIP, and an address of ours to ask from.
    fn rounds(&self) -> Vec<Round> {
        let vips: Vec<Ipv4Addr> = self
            .config
            .services
            .iter()
            .filter_map(|service| match service.id.address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
            .collect();
        let mut rounds = Vec::new();
        for name in &self.config.dataplane.interfaces {
            let Some(interface) = self.interfaces.by_name(name) else {
                continue;
            };
            let own = interface.addresses.iter().find_map(|p| match p.address {
                IpAddr::V4(address) if !vips.contains(&address) => Some(address),
                _ => None,
            });
            if let (Some(address), false) = (own, vips.is_empty()) {
                let mut asked = vips.clone();
                asked.sort_unstable();
                asked.dedup();
                rounds.push(Round {
                    interface: name.clone(),
                    asker: Asker {
                        ifindex: interface.ifindex,
                        mac: interface.mac,
                        address,
                    },
                    vips: asked,
                });
            }
        }
        rounds
    }

    /// Real servers whose MAC address is known.
    fn real_servers(&self) -> Vec<(IpAddr, [u8; 6])> {
        let mut all = Vec::new();
        for service in &self.config.services {
            for address in service.hosts() {
                if let Some(mac) = self.neighbours.mac_of(address)
                    && !all.contains(&(address, mac))
                {
                    all.push((address, mac));
                }
            }
        }
        all
    }
}

fn known(problem: &str) -> Finding {
    Finding {
        subject: "status".to_owned(),
        what: problem.to_owned(),
        cure: String::new(),
    }
}

fn usurper(host: IpAddr, mac: [u8; 6], vip: Ipv4Addr) -> Finding {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let what =
        format!("answers ARP for {vip} ({mac}): clients that believe it pass the director by");
    Finding {
        subject: format!("real server {host}"),
        what,
        cure: format!(
            "on {host}: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, and {vip}/32 on lo"
        ),
    }
}

/// What makes an interface slow.
fn interface(name: &str, mode: &str, diagnosis: &mut Diagnosis) {
    diagnosis
        .examined
        .push(format!("XDP and receive queues of {name}"));
    if mode == "generic" {
        diagnosis.findings.push(Finding {
            subject: format!("interface {name}"),
            what: "runs generic XDP, behind the kernel's packet buffers: several times slower than native".to_owned(),
            cure: "use a driver with native XDP, or a kernel whose driver has it".to_owned(),
        });
    }
    let queues = fs::read_dir(Path::new("/sys/class/net").join(name).join("queues"))
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"))
                .count()
        })
        .unwrap_or(0);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    if queues == 1 && cpus > 1 {
        diagnosis.findings.push(Finding {
            subject: format!("interface {name}"),
            what: format!("has one receive queue for {cpus} CPUs: one of them does all the work"),
            cure: format!("ethtool -L {name} combined {cpus}, where the hardware has more queues"),
        });
    }
}

/// What makes every program slow.
fn host(diagnosis: &mut Diagnosis) {
    diagnosis
        .examined
        .push("whether BPF programs are compiled".to_owned());
    if let Ok(text) = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        && text.trim() == "0"
    {
        diagnosis.findings.push(Finding {
            subject: "this host".to_owned(),
            what: "interprets BPF programs instead of compiling them: ten times slower".to_owned(),
            cure: "sysctl -w net.core.bpf_jit_enable=1".to_owned(),
        });
    }
}
