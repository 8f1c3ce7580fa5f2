//! FRR's vrrpd as the other director. It speaks from a macvlan with the virtual MAC address.

use lab::{Lab, Node, peer::Frr};

use super::{Dialect, pair::Peer};

pub struct FrrPeer {
    node: Node,
    vip: String,
    lines: Vec<&'static str>,
    frr: Option<Frr>,
}

impl FrrPeer {
    pub fn new(node: &Node, dialect: &Dialect, lines: &'static [&'static str]) -> Self {
        let vip = dialect.addresses[0].split('/').next().unwrap();
        Self {
            node: node.clone(),
            vip: vip.to_owned(),
            lines: [&["priority 100"], lines].concat(),
            frr: None,
        }
    }

    /// What it says of its only router and family.
    fn show(&self, key: &str) -> Option<serde_json::Value> {
        let family = if self.vip.contains(':') { "v6" } else { "v4" };
        let shown = self.frr.as_ref()?.show().ok()?;
        Some(shown[family][key].clone())
    }
}

impl Peer for FrrPeer {
    fn start(&mut self, lab: &Lab) {
        match &mut self.frr {
            Some(frr) => frr.resume(lab).unwrap(),
            None => {
                let frr = Frr::start(lab, &self.node, 20, &self.vip, &self.lines);
                self.frr = Some(frr.unwrap());
            }
        }
    }

    fn stop(&mut self) {
        self.frr.as_mut().unwrap().stop().unwrap();
    }

    fn kill(&mut self) {
        self.frr.as_mut().unwrap().kill().unwrap();
    }

    fn is_master(&self) -> bool {
        self.show("status").is_some_and(|status| status == "Master")
    }

    fn ends_heard(&self) -> usize {
        let log = self.frr.as_ref().map(Frr::log).unwrap_or_default();
        let of_end = |line: &&str| {
            line.contains("Received VRRP Advertisement") && line.contains("priority 0,")
        };
        log.lines().filter(of_end).count()
    }

    fn complaints(&mut self) -> Vec<String> {
        let stats = self.show("stats").unwrap();
        assert!(
            stats["adverRx"].as_u64() > Some(0),
            "it has heard nothing: {stats}"
        );
        self.frr.as_ref().unwrap().complaints()
    }

    fn log(&self) -> String {
        let frr = self.frr.as_ref();
        let shown = frr.and_then(|frr| frr.show().ok()).unwrap_or_default();
        format!("{shown:#}\n{}", frr.map(Frr::log).unwrap_or_default())
    }
}
