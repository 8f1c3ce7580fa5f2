//! An address goes from one master to another by a reload, where IPVS forwards: it is there, and served, all
//! the time.

use std::{process::Command, time::Duration};

use lab::{
    Guide, Process,
    guide::{self, Settings, VIP, VIP2},
    http::{self, Prober},
    network::{INTERFACE, run},
};
use lb_user::model::VrrpState::Master;

use crate::with_modules;

/// Emulation takes its time; a connection that is refused fails at once.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_secs(2);

/// The guide's services with these instances: name, virtual router id, addresses.
fn config(instances: &[(&str, u8, &[&str])]) -> String {
    let both = guide::config(&Settings {
        second: Some(1),
        ..Settings::of(1)
    });
    let services = &both[both.find("[[service]]").unwrap()..];
    let one = |(name, vrid, addresses): &(&str, u8, &[&str])| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\n\
             priority = 100\naddresses = {addresses:?}\n"
        )
    };
    let instances: String = instances.iter().map(one).collect();
    format!("[dataplane]\nmode = \"ipvs\"\n{instances}{services}")
}

#[test]
fn an_address_that_moves_is_served_all_the_time() {
    let _modules = with_modules();
    let (one, two) = (format!("{VIP}/16"), format!("{VIP2}/16"));
    let (one, two, other) = (one.as_str(), two.as_str(), "10.1.15.71/16");
    let mut guide = Guide::prepare().unwrap();
    let first = config(&[("VI_1", 20, &[one, other]), ("VI_2", 30, &[two])]);
    guide.node1.configure(&first).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    for name in ["VI_1", "VI_2"] {
        guide.node1.wait_for(name, Master).unwrap();
    }
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    let node = guide.node1.node.clone();
    let program = run(Command::new("which").arg("ip")).unwrap();
    let monitor = ["monitor", "address"];
    let monitor = Process::start(
        &guide.lab,
        &node,
        "monitor",
        program.trim().as_ref(),
        &monitor,
    );
    let monitor = monitor.unwrap();
    let clients = [VIP, VIP2].map(|vip| Prober::start(&guide.client, vip, PATIENCE).unwrap());
    for instances in [
        // Virtual router ids are exchanged, an address moves, and an instance is called otherwise.
        [("VI_1", 30, &[one, other][..]), ("VI_2", 20, &[two])],
        [("VI_1", 30, &[other]), ("VI_2", 20, &[one, two])],
        [("VI_1", 30, &[one]), ("VI_A", 20, &[two])],
    ] {
        guide.node1.configure(&config(&instances)).unwrap();
        guide.node1.ctl(&["reload"]).unwrap();
        std::thread::sleep(BETWEEN);
    }
    for client in clients {
        let samples = client.finish().unwrap();
        assert!(samples.len() > 10, "{}", samples.len());
        assert_eq!(http::failures(&samples), 0, "of {}", samples.len());
    }
    let log = monitor.log();
    let deleted = |address: &str| {
        let mut lines = log.lines().filter(|line| line.starts_with("Deleted"));
        lines.any(|line| line.contains(address))
    };
    assert!(deleted(other), "the monitor works\n{log}");
    assert!(!deleted(one) && !deleted(two), "{log}");
    assert_eq!(guide.node1.state("VI_A").unwrap(), Master);
    guide.node1.stop().unwrap();
}
