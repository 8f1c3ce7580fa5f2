//! The IPVS data plane against a kernel that has IPVS: what it makes the kernel hold, as ipvsadm shows
//! it, and what it leaves alone.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use lab::{Lab, Node, network::run, wait};
use lb_user::{
    dataplane::{
        DataPlane, Plan,
        ipvs::{Ipvs, state_path},
        plan::{
            BackendState::{Down, Draining, Unresolved, Up},
            PlannedBackend, PlannedService,
        },
    },
    model::{
        Forwarding, Hashing, Persistence,
        Protocol::{Sctp, Tcp, Udp},
        Runtime, Scheduler, ServiceId, Target, Tunnel,
    },
};

use crate::{program::timeouts, with_modules, without_modules};

/// Settings that IPVS mode may change.
const SYSCTLS: [&str; 5] = [
    "expire_nodest_conn",
    "expire_quiescent_template",
    "conn_reuse_mode",
    "sloppy_tcp",
    "backup_only",
];

pub fn runtime(lab: &Lab) -> Runtime {
    Runtime {
        socket: lab.directory().join("lbd.sock"),
        pin_path: lab.pin_path("lbd"),
        script_user: "nobody".to_owned(),
        notify_fifo: None,
    }
}

pub fn server(address: &str, weight: u32) -> PlannedBackend {
    let address: IpAddr = address.parse().unwrap();
    PlannedBackend::new(Target::Host(address), weight, Up)
}

pub fn service(vip: &str, scheduler: Scheduler, servers: Vec<PlannedBackend>) -> PlannedService {
    let vip: SocketAddr = vip.parse().unwrap();
    PlannedService::new(ServiceId::new(Tcp, vip), 0, scheduler, servers)
}

fn plan(services: Vec<PlannedService>) -> Plan {
    Plan::of(services)
}

/// The table as ipvsadm lists it, without its three lines of headings.
fn listed(arguments: &[&str]) -> Vec<String> {
    let text = run(Command::new("ipvsadm").arg("-Ln").args(arguments)).unwrap();
    let lines = text.lines().skip(3);
    lines.map(|line| line.trim_end().to_owned()).collect()
}

fn kernel_timeouts() -> String {
    run(Command::new("ipvsadm").args(["-L", "--timeout"])).unwrap()
}

fn sysctls() -> BTreeMap<&'static str, String> {
    let read = |name| {
        let path = Path::new("/proc/sys/net/ipv4/vs").join(name);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    SYSCTLS.iter().map(|name| (*name, read(name))).collect()
}

/// Runs `work` on a node of its own.
pub fn on_a_node(work: impl FnOnce(&Lab, &Node) + Send) {
    let _modules = with_modules();
    let lab = Lab::new().unwrap();
    let node = lab.node("director", [10, 1, 15, 43]).unwrap();
    let address = ["-6", "address", "add", "2001:db8::43/64", "dev"];
    let device = [lab::network::INTERFACE, "nodad"];
    node.ip(&[&address[..], &device].concat()).unwrap();
    node.within(|| work(&lab, &node)).unwrap();
}

/// Everything that a service can have, in one plan.
fn rich() -> Plan {
    let mut web = service(
        "10.1.15.50:80",
        Scheduler::Wrr,
        vec![
            server("10.1.15.45", 3),
            server("10.1.15.46", 1),
            server("10.1.15.47", 1),
            server("10.1.15.48", 1),
        ],
    );
    web.backends[1].upper = 100;
    web.backends[1].lower = 50;
    web.backends[2].state = Draining;
    web.backends[3].state = Down;
    let mut dns = service(
        "10.1.15.50:53",
        Scheduler::Rr,
        vec![server("10.1.15.45", 1)],
    );
    dns.id.protocol = Udp;
    dns.one_packet = true;
    dns.persistence = Some(Persistence {
        timeout: Duration::from_secs(300),
        prefix: 24,
        engine: None,
    });
    let mut nat = service(
        "10.1.15.51:80",
        Scheduler::Wlc,
        vec![server("172.20.0.5", 1)],
    );
    nat.forwarding = Forwarding::Nat;
    nat.backends[0].port = Some(8080);
    let mut tunnel = service(
        "10.1.15.52:9000",
        Scheduler::Sh,
        vec![server("172.20.0.5", 1), server("2001:db8:20::5", 2)],
    );
    tunnel.id.protocol = Sctp;
    tunnel.forwarding = Forwarding::Tunnel(Tunnel::Ipip);
    tunnel.hashing = Hashing {
        port: true,
        fallback: true,
    };
    let mut six = service(
        "[2001:db8::50]:443",
        Scheduler::Mh,
        vec![server("2001:db8::45", 1)],
    );
    six.persistence = Some(Persistence {
        timeout: Duration::from_secs(360),
        prefix: 64,
        engine: None,
    });
    six.backends.push(PlannedBackend {
        sorry: true,
        ..PlannedBackend::new(Target::Local, 1, Draining)
    });
    let mut sorry = service(
        "10.1.15.53:80",
        Scheduler::Wrr,
        vec![server("10.1.15.45", 1)],
    );
    sorry.backends[0].state = Unresolved;
    sorry.backends.push(PlannedBackend {
        sorry: true,
        ..PlannedBackend::new(Target::Local, 1, Up)
    });
    plan(vec![web, dns, nat, tunnel, six, sorry])
}

const RICH: [&str; 18] = [
    "TCP  10.1.15.50:80 wrr",
    "  -> 10.1.15.45:80                Route   3      0          0",
    "  -> 10.1.15.46:80                Route   1      0          0",
    "  -> 10.1.15.47:80                Route   0      0          0",
    "TCP  10.1.15.51:80 wlc",
    "  -> 172.20.0.5:8080              Masq    1      0          0",
    "TCP  10.1.15.53:80 wrr",
    "  -> 10.1.15.45:80                Route   0      0          0",
    "  -> 127.0.0.1:80                 Route   1      0          0",
    "UDP  10.1.15.50:53 rr persistent 300 mask 255.255.255.0 ops",
    "  -> 10.1.15.45:53                Route   1      0          0",
    "SCTP 10.1.15.52:9000 sh (sh-fallback,sh-port)",
    "  -> 172.20.0.5:9000              Tunnel  1      0          0",
    "  -> [2001:db8:20::5]:9000        Tunnel  2      0          0",
    "TCP  [2001:db8::50]:443 mh persistent 360 mask 64",
    "  -> [2001:db8::45]:443           Route   1      0          0",
    "FWM  9 rr",
    "  -> 10.1.15.99:0                 Route   1      0          0",
];

/// A plan with everything; twice; changed by others; and gone again, with what is not ours unharmed.
#[test]
fn the_kernel_holds_the_plan_and_what_is_not_ours() {
    on_a_node(|lab, _| {
        run(Command::new("ipvsadm").args(["-A", "-f", "9", "-s", "rr"])).unwrap();
        let foreign = ["-a", "-f", "9", "-r", "10.1.15.99:0", "-g"];
        run(Command::new("ipvsadm").args(foreign)).unwrap();
        let before = (sysctls(), kernel_timeouts());
        let mut shorter = timeouts();
        shorter.tcp = Duration::from_secs(600);
        let mut ipvs = Ipvs::start(&shorter, &runtime(lab)).unwrap();
        let first = ipvs.apply(&rich()).unwrap();
        assert_eq!(listed(&[]), RICH);
        assert!(kernel_timeouts().contains("600 120 300"));
        let thresholds = listed(&["--thresholds"]).join("\n");
        assert!(
            thresholds.contains("10.1.15.46:80                100        50"),
            "{thresholds}"
        );

        let changes = ipvs.changes();
        assert!(changes > 0);
        assert_eq!(ipvs.apply(&rich()).unwrap(), first);
        ipvs.sweep();
        assert_eq!(ipvs.changes(), changes, "applying twice sends nothing");
        assert_eq!(ipvs.snapshot().repairs.count, 0);

        // Everything of everybody is removed: ours comes back.
        run(Command::new("ipvsadm").arg("-C")).unwrap();
        ipvs.sweep();
        assert_eq!(listed(&[]), RICH[..16]);
        let repairs = ipvs.snapshot().repairs;
        assert!(repairs.count >= 10 && repairs.at > 0, "{repairs:?}");
        // A server's weight, another server, a scheduler, a sysctl.
        for arguments in [
            &[
                "-e",
                "-t",
                "10.1.15.50:80",
                "-r",
                "10.1.15.45:80",
                "-w",
                "9",
            ][..],
            &["-a", "-t", "10.1.15.50:80", "-r", "10.1.15.77:80", "-g"],
            &["-E", "-t", "10.1.15.51:80", "-s", "rr"],
        ] {
            run(Command::new("ipvsadm").args(arguments)).unwrap();
        }
        fs::write("/proc/sys/net/ipv4/vs/expire_nodest_conn", "0").unwrap();
        ipvs.sweep();
        assert_eq!(listed(&[]), RICH[..16]);
        assert_eq!(ipvs.snapshot().repairs.count, repairs.count + 4);
        assert_eq!(sysctls()["expire_nodest_conn"], "1");
        // A persistent service has nobody who cannot be found.
        assert_eq!(sysctls()["expire_quiescent_template"], "0");

        run(Command::new("ipvsadm").args(["-A", "-f", "9", "-s", "rr"])).unwrap();
        run(Command::new("ipvsadm").args(foreign)).unwrap();
        assert!(state_path(&runtime(lab).socket).exists());
        ipvs.detach().unwrap();
        assert_eq!(listed(&[]), RICH[16..]);
        assert_eq!((sysctls(), kernel_timeouts()), before);
        assert!(!state_path(&runtime(lab).socket).exists());
    });
}

/// What somebody else changed is told of, whatever the daemon changes next.
#[test]
fn no_change_of_ours_hides_a_repair() {
    on_a_node(|lab, _| {
        let of_weight = |weight| {
            let servers = vec![server("10.1.15.45", weight)];
            plan(vec![service("10.1.15.50:80", Scheduler::Wrr, servers)])
        };
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        ipvs.apply(&of_weight(1)).unwrap();
        let changes: [fn(&mut Ipvs, &Plan); 3] = [
            |ipvs, plan| assert!(ipvs.apply(plan).is_ok()),
            |ipvs, _| ipvs.set_timeouts(&timeouts()),
            |ipvs, _| ipvs.set_probes(&[], &[]).unwrap(),
        ];
        for (change, repairs) in changes.into_iter().zip([2, 4, 6]) {
            run(Command::new("ipvsadm").arg("-C")).unwrap();
            change(&mut ipvs, &of_weight(2));
            // The service and its real server.
            assert_eq!(ipvs.snapshot().repairs.count, repairs);
        }
        assert!(listed(&[])[1].contains("10.1.15.45"));
        ipvs.sweep();
        assert_eq!(ipvs.snapshot().repairs.count, 6);
        // What is taken back of a plan that the kernel refuses was no change by others.
        let mut refused = of_weight(3);
        let servers = vec![server("10.1.15.46", 1)];
        refused
            .services
            .push(service("10.1.15.50:81", Scheduler::Twos, servers));
        assert!(ipvs.apply(&refused).is_err());
        assert_eq!(ipvs.snapshot().repairs.count, 6);
        ipvs.detach().unwrap();
    });
}

/// A daemon that died leaves its services; the next one goes on with them, removes those that the
/// configuration has no more, and knows whose the others are.
#[test]
fn the_next_daemon_knows_what_is_ours() {
    on_a_node(|lab, _| {
        let two = || {
            let web = |vip| service(vip, Scheduler::Rr, vec![server("10.1.15.45", 1)]);
            vec![web("10.1.15.50:80"), web("10.1.15.51:80")]
        };
        let before = sysctls();
        let mut first = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        assert!(!first.took_over());
        first.apply(&plan(two())).unwrap();
        drop(first);
        let foreign = ["-A", "-t", "10.1.15.60:80", "-s", "rr"];
        run(Command::new("ipvsadm").args(foreign)).unwrap();

        let mut second = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        assert!(second.took_over());
        second.apply(&plan(two().split_off(1))).unwrap();
        // What did not change was not touched.
        assert_eq!(second.changes(), 1);
        let names = listed(&[]);
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("TCP  10.1.15.51:80") && names[2].contains("10.1.15.60"));
        second.detach().unwrap();
        assert_eq!(listed(&[]), ["TCP  10.1.15.60:80 rr"]);
        assert_eq!(sysctls(), before);
    });
}

/// A daemon that died while the kernel learned connections, or while it put settings back, has no services any more.
#[test]
fn leftovers_without_services() {
    on_a_node(|lab, _| {
        let before = (sysctls(), kernel_timeouts());
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let left = format!(
            "{{\"boot\": \"{}\", \"sync\": true, \"timeouts\": [900, 120, 300], \"sysctls\": {{\"sloppy_tcp\": \"0\"}}}}",
            boot.trim()
        );
        let file = state_path(&runtime(lab).socket);
        fs::write(&file, left).unwrap();
        let daemon = ["--start-daemon", "backup", "--mcast-interface", "lo"];
        lab::network::run(Command::new("ip").args(["link", "set", "lo", "up"])).unwrap();
        run(Command::new("ipvsadm").args(daemon)).unwrap();
        run(Command::new("ipvsadm").args(["--set", "7", "8", "9"])).unwrap();
        fs::write("/proc/sys/net/ipv4/vs/sloppy_tcp", "1").unwrap();
        assert!(lb_user::dataplane::ipvs::remove_leftovers(&runtime(lab)).unwrap());
        assert_eq!((sysctls(), kernel_timeouts()), before);
        let daemons = run(Command::new("ipvsadm").args(["-L", "--daemon"])).unwrap();
        assert_eq!(daemons, "");
        assert!(!file.exists());
        assert!(!lb_user::dataplane::ipvs::remove_leftovers(&runtime(lab)).unwrap());
    });
}

/// The service of a BACKUP that has the address all the same is not in the kernel.
#[test]
fn a_real_server_that_is_a_director_too_keeps_its_packets() {
    on_a_node(|lab, node| {
        node.ip(&["address", "add", "10.1.15.50/32", "dev", "lo"])
            .unwrap();
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        let mut own = service(
            "10.1.15.50:80",
            Scheduler::Rr,
            vec![server("10.1.15.45", 1)],
        );
        own.role = 1;
        let mut warm = service(
            "10.1.15.51:80",
            Scheduler::Rr,
            vec![server("10.1.15.45", 1)],
        );
        warm.role = 1;
        ipvs.apply(&plan(vec![own.clone(), warm])).unwrap();
        let names = |lines: Vec<String>| -> Vec<String> {
            lines
                .into_iter()
                .filter(|line| line.starts_with("TCP"))
                .collect()
        };
        let both = ["TCP  10.1.15.50:80 rr", "TCP  10.1.15.51:80 rr"];
        assert_eq!(names(listed(&[])), both[1..]);
        assert_eq!(sysctls()["sloppy_tcp"], "0");
        ipvs.set_role(1, true);
        assert_eq!(names(listed(&[])), both);
        // Connections that the other director forwarded so far go on here.
        assert_eq!(sysctls()["sloppy_tcp"], "1");
        ipvs.set_role(1, false);
        assert_eq!(names(listed(&[])), both[1..]);
        ipvs.sweep();
        assert_eq!(ipvs.snapshot().repairs.count, 0);
        // With no other service either, the settings are ours all the same.
        let mut only = own;
        only.backends[0].weight = 2;
        ipvs.apply(&plan(vec![only])).unwrap();
        assert!(listed(&[]).is_empty());
        fs::write("/proc/sys/net/ipv4/vs/expire_nodest_conn", "0").unwrap();
        ipvs.sweep();
        assert_eq!(sysctls()["expire_nodest_conn"], "1");
        assert_eq!(ipvs.snapshot().repairs.count, 1);
        ipvs.detach().unwrap();
    });
}

/// Every scheduler; one whose module this kernel does not have is refused with what to load.
#[test]
fn every_scheduler() {
    on_a_node(|lab, _| {
        let mut ipvs = Ipvs::start(&timeouts(), &runtime(lab)).unwrap();
        let mut missing = Vec::new();
        for (name, scheduler) in Scheduler::ALL {
            let servers = vec![server("10.1.15.45", 1), server("10.1.15.46", 2)];
            let wanted = plan(vec![service("10.1.15.50:80", scheduler, servers)]);
            let module = format!("ip_vs_{name}");
            let exists = Command::new("modprobe").args(["-n", &module]).output();
            ipvs.load_schedulers(&wanted);
            let lacks = ipvs.lacks_for(&wanted);
            match ipvs.apply(&wanted) {
                Ok(_) => {
                    let lines = listed(&[]);
                    assert_eq!(lines[0], format!("TCP  10.1.15.50:80 {name}"));
                    assert_eq!(lines.len(), 3, "{lines:?}");
                    assert_eq!(lacks, None);
                }
                Err(error) => {
                    // It was known before.
                    let lacks = lacks.unwrap();
                    assert!(lacks.contains(&format!("modprobe {module}")), "{lacks}");
                    assert!(!exists.unwrap().status.success(), "{name}: {error}");
                    let text = error.to_string();
                    assert!(text.contains(&format!("modprobe {module}")), "{text}");
                    // What ran before runs on.
                    assert_eq!(listed(&[]).len(), 3);
                    missing.push(name);
                }
            }
        }
        println!("schedulers that this kernel does not have: {missing:?}");
        assert!(missing.len() <= 1, "{missing:?}");
        ipvs.detach().unwrap();
        assert!(listed(&[]).is_empty());
    });
}

/// No module, and none to load.
#[test]
fn missing_modules() {
    let _alone = without_modules();
    wait::until_true("the modules are unloaded", Duration::from_secs(30), || {
        let list = fs::read_to_string("/proc/modules")?;
        let names = list.lines().filter_map(|line| line.split(' ').next());
        for name in names.filter(|name| name.starts_with("ip_vs")) {
            let _ = Command::new("rmmod").arg(name).output();
        }
        Ok(!fs::read_to_string("/proc/modules")?.contains("ip_vs"))
    })
    .unwrap();
    fs::create_dir_all("/etc/modprobe.d").unwrap();
    let file = "/etc/modprobe.d/lbd-test.conf";
    fs::write(file, "install ip_vs /bin/false\n").unwrap();
    let lab = Lab::new().unwrap();
    let refused = Ipvs::start(&timeouts(), &runtime(&lab)).map(|_| ());
    fs::remove_file(file).unwrap();
    let text = refused.unwrap_err().to_string();
    for words in [
        "this kernel has no IPVS",
        "modprobe ip_vs",
        "install the kernel package",
    ] {
        assert!(text.contains(words), "{text}");
    }
    // With the module to be had, it is loaded.
    let mut ipvs = Ipvs::start(&timeouts(), &runtime(&lab)).unwrap();
    ipvs.detach().unwrap();
}
