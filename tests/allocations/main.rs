//! The thread that sends and hears adverts allocates nothing for one, in any dialect: an allocator may wait for
//! a lock that a thread of ordinary priority holds. A test of its own, because it counts with the allocator of
//! the whole program.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use lab::{Lab, Node, network::INTERFACE, wait};
use lb_user::{
    config,
    model::{Verdict, VrrpState},
    vrrp::{
        driver::{Driver, Link, Report, Setup},
        runner::Snapshot,
    },
};

/// Thread ids that can be told apart; more than tests have.
const THREADS: usize = 1 << 16;
/// Allocations and releases of each thread.
static CALLS: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

struct Counting;

fn count() {
    // SAFETY: it has no arguments, and cannot fail.
    let thread = unsafe { libc::gettid() };
    CALLS[thread as usize % THREADS].fetch_add(1, Relaxed);
}

// SAFETY: the system's allocator does the work, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEY: &str = "[vrrp.auth_hmac]\nactive_key = 1\n[[vrrp.auth_hmac.key]]\nid = 1\nvalue = \"0123456789abcdef0123456789abcdef\"\n";

/// Each dialect with its own virtual router.
fn text(priority: u8, peers: [&str; 2]) -> String {
    let fast = "version = 3\nadvert_interval = \"100ms\"\n";
    let fast6 = "advert_interval = \"100ms\"\n";
    let to = |peer: &str| format!("unicast_peers = [\"{peer}\"]\n");
    let own_source = |peer: &str| match peer.strip_suffix("44") {
        Some(network) => format!("{fast6}{}source_address = \"{network}43\"\n", to(peer)),
        None => format!("{fast6}{}source_address = \"2001:db8::44\"\n", to(peer)),
    };
    let rows: [(&str, String); 9] = [
        ("10.1.15.51/16", String::new()),
        ("10.1.15.52/16", "password = \"secret\"\n".to_owned()),
        (
            "10.1.15.53/16",
            "authentication = \"ah\"\npassword = \"secret\"\n".to_owned(),
        ),
        ("10.1.15.54/16", fast.to_owned()),
        ("10.1.15.55/16", fast.to_owned() + &to(peers[0])),
        (
            "10.1.15.56/16",
            fast.to_owned() + "use_virtual_mac = true\n",
        ),
        ("fe80::57/64", fast6.to_owned()),
        ("2001:db8::58/64", own_source(peers[1])),
        ("10.1.15.59/16", fast.to_owned() + KEY),
    ];
    let one = |(at, (address, more)): (usize, &(&str, String))| {
        format!(
            "[[vrrp]]\nname = \"VI_{at}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {}\n\
             priority = {priority}\naddresses = [\"{address}\"]\n{more}",
            at + 1
        )
    };
    rows.iter().enumerate().map(one).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

struct Router {
    driver: Driver,
    thread: usize,
    _reports: tokio::sync::mpsc::Receiver<Report>,
}

impl Router {
    fn start(node: &Node, text: &str) -> Self {
        let ifindex = node.ifindex().unwrap();
        let instances = config::parse("lbd.toml", text, "host").unwrap().instances;
        let last = node.address.octets()[3];
        let setup = |instance: lb_user::model::Instance| {
            let source: IpAddr = match (instance.is_v6(), instance.source) {
                (_, Some(source)) => source,
                (true, None) => format!("fe80::{last}").parse().unwrap(),
                (false, None) => node.address.into(),
            };
            Setup {
                instance,
                link: Link::Up { ifindex, source },
                verdict: Verdict::default(),
            }
        };
        let setups: Vec<Setup> = instances.into_iter().map(setup).collect();
        let before = threads();
        node.within(move || {
            let (driver, reports) = Driver::start().unwrap();
            block_on(driver.configure(setups));
            let new: Vec<usize> = threads()
                .into_iter()
                .filter(|thread| !before.contains(thread))
                .collect();
            assert_eq!(new.len(), 1, "{new:?}");
            Self {
                driver,
                thread: new[0],
                _reports: reports,
            }
        })
        .unwrap()
    }

    fn look(&self) -> Vec<Snapshot> {
        block_on(self.driver.snapshot())
    }

    fn wait_for(&self, state: VrrpState) {
        wait::until_true(&format!("all are {state}"), Duration::from_secs(20), || {
            Ok(self.look().iter().all(|instance| instance.state == state))
        })
        .unwrap();
    }

    fn calls(&self) -> u64 {
        CALLS[self.thread % THREADS].load(Relaxed)
    }
}

/// Ids of the threads that speak VRRP.
fn threads() -> Vec<usize> {
    let all = fs::read_dir("/proc/self/task").unwrap();
    let is_one = |id: &usize| {
        let name = fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        name.is_ok_and(|name| name.trim() == "vrrp")
    };
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_one)
        .collect()
}

#[test]
fn adverts_are_sent_and_heard_without_allocating() {
    let lab = Lab::new().unwrap();
    let nodes = [("node1", 43), ("node2", 44)].map(|(name, last)| {
        let node = lab.node(name, [10, 1, 15, last]).unwrap();
        for address in [format!("fe80::{last}/64"), format!("2001:db8::{last}/64")] {
            node.ip(&["address", "add", &address, "dev", INTERFACE, "nodad"])
                .unwrap();
        }
        node
    });
    let master = Router::start(&nodes[0], &text(150, ["10.1.15.44", "2001:db8::44"]));
    let backup = Router::start(&nodes[1], &text(100, ["10.1.15.43", "2001:db8::43"]));
    master.wait_for(VrrpState::Master);
    backup.wait_for(VrrpState::Backup);
    assert!(master.calls() > 0, "the allocator counts");

    let before = [master.look(), backup.look()];
    // What the answers left behind.
    std::thread::sleep(Duration::from_millis(200));
    let calls = [master.calls(), backup.calls()];
    std::thread::sleep(Duration::from_secs(4));
    let made = [master.calls() - calls[0], backup.calls() - calls[1]];
    let after = [master.look(), backup.look()];
    assert_eq!(made, [0, 0], "calls of the allocator");
    for (before, after) in before[0].iter().zip(&after[0]) {
        assert!(after.sent >= before.sent + 3, "{}: {after:?}", after.name);
    }
    for (before, after) in before[1].iter().zip(&after[1]) {
        assert!(
            after.received >= before.received + 3,
            "{}: {after:?}",
            after.name
        );
        assert_eq!(after.state, VrrpState::Backup, "{}", after.name);
        assert!(after.oddities.is_empty(), "{}: {after:?}", after.name);
    }
    block_on(backup.driver.stop());
    block_on(master.driver.stop());
}
