//! As many instances on one interface as there are virtual router ids.

use std::time::{Duration, Instant};

use lab::{Director, Lab, network::INTERFACE, wait};
use lb_user::{
    api::proto::Status,
    model::VrrpState::{self, Backup, Master},
};

const COUNT: usize = 255;
/// Adverts of one second must not be later than half of what the other side waits for a second one.
/// Generous, because the machine that tests may be busy with other things.
const LATEST: Duration = Duration::from_millis(500);
/// One instance takes over (256 - 90) / 256 s after the other director has said that it stops. All of them
/// may take this much longer: putting 255 addresses in place is 255 questions to the kernel.
const SURCHARGE: Duration = Duration::from_secs(3);

fn config(version: u8, priority: u8) -> String {
    (1..=COUNT)
        .map(|vrid| {
            format!(
                "[[vrrp]]\nname = \"VI_{vrid}\"\ninterface = \"{INTERFACE}\"\nversion = {version}\n\
                 virtual_router_id = {vrid}\npriority = {priority}\naddresses = [\"10.1.16.{vrid}/32\"]\n"
            )
        })
        .collect()
}

fn are_all(status: &Status, state: VrrpState) -> bool {
    status.instances.len() == COUNT && status.instances.iter().all(|i| i.state == state)
}

fn wait_for_all(lbd: &Director, state: VrrpState, limit: Duration) -> Duration {
    let begin = Instant::now();
    let what = format!("all instances of {} are {state}", lbd.node.name);
    wait::until_true(&what, limit, || Ok(are_all(&lbd.status()?, state))).unwrap_or_else(|error| {
        let status = lbd.status().unwrap();
        let others = status.instances.iter().filter(|i| i.state != state);
        panic!("{error}: {} are not", others.count())
    });
    begin.elapsed()
}

fn worst(lbd: &Director) -> Duration {
    let status = lbd.status().unwrap();
    let late = status.instances.iter().map(|i| i.worst_lateness_us).max();
    Duration::from_micros(late.unwrap())
}

fn addresses(lbd: &Director) -> usize {
    let all = lbd.node.addresses().unwrap();
    all.iter().filter(|a| a.starts_with("10.1.16.")).count()
}

#[test]
fn two_directors_share_255_instances() {
    for version in [2, 3] {
        let lab = Lab::new().unwrap();
        let node1 = lab.node("node1", [10, 1, 15, 43]).unwrap();
        let node2 = lab.node("node2", [10, 1, 15, 44]).unwrap();
        let mut lbd1 = Director::new(&lab, &node1, &config(version, 100)).unwrap();
        let mut lbd2 = Director::new(&lab, &node2, &config(version, 90)).unwrap();
        lbd1.start(&lab).unwrap();
        lbd2.start(&lab).unwrap();
        wait_for_all(&lbd1, Master, Duration::from_secs(20));
        wait_for_all(&lbd2, Backup, Duration::from_secs(20));
        // Ten intervals in which nothing may change.
        let since = |lbd: &Director| -> Vec<u64> {
            let status = lbd.status().unwrap();
            status.instances.iter().map(|i| i.since).collect()
        };
        let before = [since(&lbd1), since(&lbd2)];
        std::thread::sleep(Duration::from_secs(10));
        assert_eq!([since(&lbd1), since(&lbd2)], before, "nobody changed");
        assert_eq!((addresses(&lbd1), addresses(&lbd2)), (COUNT, 0));
        for lbd in [&lbd1, &lbd2] {
            let late = worst(lbd);
            assert!(late <= LATEST, "{}: {late:?} late", lbd.node.name);
            let status = lbd.status().unwrap();
            let odd = status.instances.iter().filter(|i| !i.rejected.is_empty());
            assert_eq!(odd.count(), 0, "every advert is believed");
        }

        let stopping = std::thread::spawn(move || lbd1.stop());
        let took = wait_for_all(&lbd2, Master, Duration::from_secs(20));
        stopping.join().unwrap().unwrap();
        let skew = Duration::from_millis((256 - 90) * 1_000 / 256);
        assert!(took <= skew + SURCHARGE, "version {version}: {took:?}");
        wait::until_true("all addresses", Duration::from_secs(10), || {
            Ok(addresses(&lbd2) == COUNT)
        })
        .unwrap();
        let late = worst(&lbd2);
        assert!(late <= LATEST, "after the failover: {late:?} late");
        lbd2.stop().unwrap();
    }
}
