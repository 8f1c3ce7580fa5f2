//! Whose each of the kernel's sync daemons is: it has one that tells and one that learns, and either may be
//! somebody else's.

use std::{process::Command, time::Duration};

use lab::{
    Director,
    network::{INTERFACE, run},
};
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        carried::{Carried, Phase},
        ipvs::{Ipvs, remove_leftovers, state_path},
    },
    model::{Scheduler, SyncDaemonConfig, VrrpState},
};

use crate::{
    ipvs::{on_a_node, runtime, server, service},
    program::timeouts,
};

/// Somebody else starts one.
fn start(state: &str) {
    let arguments = ["--start-daemon", state, "--mcast-interface", INTERFACE];
    run(Command::new("ipvsadm")
        .args(arguments)
        .args(["--syncid", "9"]))
    .unwrap();
}

/// The daemons as ipvsadm lists them: "master 9".
fn daemons() -> Vec<String> {
    let text = run(Command::new("ipvsadm").args(["-L", "--daemon"])).unwrap();
    let one = |line: &str| {
        let state = line.split_whitespace().next()?;
        let (_, rest) = line.split_once("syncid=")?;
        let id = rest.split([',', ')']).next()?;
        Some(format!("{state} {id}"))
    };
    text.lines().filter_map(one).collect()
}

/// A service, shared under id 7 or not. Role 0 is MASTER always.
fn plan(role: Option<u16>) -> Plan {
    let servers = vec![server("10.1.15.45", 1)];
    let mut plan = Plan::of(vec![service("10.1.15.50:80", Scheduler::Wrr, servers)]);
    plan.sync = role.map(|role| {
        let config = SyncDaemonConfig {
            interface: INTERFACE.to_owned(),
            instance: "VI_1".to_owned(),
            id: 7,
            length: None,
            group: None,
            port: None,
            ttl: None,
        };
        (config, role)
    });
    plan
}

/// A daemon that was killed left ours, and somebody else has started the other one: the next daemon stops only ours.
#[test]
fn a_killed_daemon_leaves_its_own_alone() {
    on_a_node(|lab, _| {
        for (role, ours, theirs) in [(1, "backup", "master"), (0, "master", "backup")] {
            let killed = || {
                let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
                ipvs.apply(&plan(Some(role))).unwrap();
                assert_eq!(daemons(), [format!("{ours} 7")]);
            };
            let is_theirs = [format!("{theirs} 9")];
            killed();
            start(theirs);
            let mut next = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
            next.apply(&plan(None)).unwrap();
            assert_eq!(daemons(), is_theirs, "where IPVS is the next data plane");
            next.sweep();
            next.detach().unwrap();
            assert_eq!(daemons(), is_theirs);
            run(Command::new("ipvsadm").args(["--stop-daemon", theirs])).unwrap();

            killed();
            start(theirs);
            assert!(remove_leftovers(&runtime(lab)).unwrap());
            assert_eq!(daemons(), is_theirs, "where XDP is the next data plane");
            assert!(!state_path(&runtime(lab).socket).exists());
            run(Command::new("ipvsadm").args(["--stop-daemon", theirs])).unwrap();
        }

        // One that could not be started is nobody's.
        let mut nowhere = plan(Some(0));
        nowhere.sync.as_mut().unwrap().0.interface = "sync9".to_owned();
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        ipvs.apply(&nowhere).unwrap();
        drop(ipvs);
        start("master");
        assert!(remove_leftovers(&runtime(lab)).unwrap());
        assert_eq!(daemons(), ["master 9"]);
    });
}

/// The daemon that learns connections for a moment is ours, and nothing else becomes ours or ceases to be with it.
#[test]
fn learning_changes_nobodys_daemon() {
    on_a_node(|lab, node| {
        node.ip(&["link", "set", "lo", "up"]).unwrap();
        let learn = |ipvs: &mut Ipvs| {
            let plan = plan(None);
            let carried = Carried {
                service: plan.services[0].id,
                client: "192.0.2.9:40000".parse().unwrap(),
                vip_port: 80,
                target: plan.services[0].backends[0].target,
                sorry: false,
                phase: Phase::Established,
                left: Duration::from_secs(60),
            };
            let fed = ipvs.learn(&plan, &[carried]).unwrap();
            assert_eq!((fed.connections, fed.trouble), (1, None));
        };
        // Ours that tells is ours afterwards.
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        ipvs.apply(&plan(Some(0))).unwrap();
        learn(&mut ipvs);
        assert_eq!(daemons(), ["master 7"]);
        drop(ipvs);
        assert!(remove_leftovers(&runtime(lab)).unwrap());
        assert!(daemons().is_empty());

        // Somebody else's is not.
        start("master");
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        ipvs.apply(&plan(None)).unwrap();
        learn(&mut ipvs);
        ipvs.detach().unwrap();
        assert_eq!(daemons(), ["master 9"]);
        run(Command::new("ipvsadm").args(["--stop-daemon", "master"])).unwrap();
    });
}

/// The same with whole daemons, and one that `[lvs_sync_daemon]` wants is put in the place of any other, which is told.
#[test]
fn a_sync_daemon_of_somebody_else() {
    on_a_node(|lab, node| {
        let config = |sync: &str| {
            format!(
                "[dataplane]\nmode = \"ipvs\"\ninterfaces = [\"{INTERFACE}\"]\n{sync}[[vrrp]]\nname = \"VI_1\"\n\
                 interface = \"{INTERFACE}\"\nvirtual_router_id = 20\naddresses = [\"10.1.15.50/32\"]\n\
                 advert_interval = \"100s\"\n[[service]]\naddress = \"10.1.15.50:80\"\n\
                 [[service.backend]]\naddress = \"10.1.15.45\"\n"
            )
        };
        let sync =
            format!("[lvs_sync_daemon]\ninterface = \"{INTERFACE}\"\nvrrp = \"VI_1\"\nid = 7\n");
        start("backup");
        let mut lbd = Director::new(lab, node, &config(&sync)).unwrap();
        lbd.start(lab).unwrap();
        lbd.wait_for("VI_1", VrrpState::Backup).unwrap();
        assert_eq!(daemons(), ["backup 7"]);
        let log = lbd.log();
        assert!(
            log.contains("stopped the backup sync daemon of somebody else"),
            "{log}"
        );
        lbd.kill().unwrap();
        start("master");
        assert_eq!(daemons(), ["master 9", "backup 7"]);

        lbd.configure(&config("")).unwrap();
        lbd.start(lab).unwrap();
        assert_eq!(daemons(), ["master 9"]);
        lbd.stop().unwrap();
        assert_eq!(daemons(), ["master 9"]);
    });
}
