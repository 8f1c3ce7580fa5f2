//! The wall clock jumps, by hours, forth and back: nobody misses an advert, and no state changes. In the guest
//! only, and after all other tests: it sets the machine's clock.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use lab::{
    Director, Lab,
    network::{INTERFACE, run},
    wait,
};
use lb_user::{api::proto::InstanceStatus, model::VrrpState};

const INTERVAL: Duration = Duration::from_secs(1);
/// Intervals that are watched after each jump: longer than a silent master is waited for.
const WATCHED: u32 = 6;
/// Hours.
const JUMPS: [i64; 5] = [6, -12, 5, -24, 25];

/// One instance in the clear, and one whose adverts bear the time.
fn config(priority: u8) -> String {
    let instance = |name: &str, vrid: u8, more: &str| {
        format!(
            "[[vrrp]]\nname = \"{name}\"\ninterface = \"{INTERFACE}\"\nvirtual_router_id = {vrid}\n\
             priority = {priority}\naddresses = [\"10.1.15.{vrid}/16\"]\n{more}"
        )
    };
    let key = "[vrrp.auth_hmac]\nactive_key = 1\n[[vrrp.auth_hmac.key]]\nid = 1\n\
               value = \"0123456789abcdef0123456789abcdef\"\n";
    instance("VI_1", 50, "") + &instance("VI_2", 60, key)
}

fn look(director: &Director) -> Vec<InstanceStatus> {
    director.status().unwrap().instances
}

fn jump(hours: i64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let to = i64::try_from(now.unwrap().as_secs()).unwrap() + hours * 3_600;
    run(Command::new("busybox").args(["date", "-s", &format!("@{to}")])).unwrap();
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let program = std::env::current_exe().unwrap();
    assert_eq!(program, Path::new("/opt/lbd/guest"), "in the guest only");
    let lab = Lab::new().unwrap();
    let mut pair = [("node1", 43, 100), ("node2", 44, 90)].map(|(name, last, priority)| {
        let node = lab.node(name, [10, 1, 15, last]).unwrap();
        let mut director = Director::new(&lab, &node, &config(priority)).unwrap();
        director.start(&lab).unwrap();
        director
    });
    for name in ["VI_1", "VI_2"] {
        pair[0].wait_for(name, VrrpState::Master).unwrap();
        pair[1].wait_for(name, VrrpState::Backup).unwrap();
    }
    let states = |pair: &[Director; 2]| -> Vec<(VrrpState, u64)> {
        let all = pair.iter().flat_map(look);
        all.map(|i| (i.state, i.entered.iter().map(|(_, count)| count).sum()))
            .collect()
    };
    let before = states(&pair);
    for hours in JUMPS {
        jump(hours);
        let (began, first) = (Instant::now(), look(&pair[1]));
        let what = format!("{WATCHED} adverts after {hours} h");
        wait::until_true(&what, 3 * WATCHED * INTERVAL, || {
            let heard = look(&pair[1])[0].received - first[0].received;
            Ok(heard >= u64::from(WATCHED))
        })
        .unwrap();
        let took = began.elapsed();
        // The first may come at once, and the answers take their time under emulation.
        let slack = 2 * INTERVAL;
        assert!(
            took >= (WATCHED - 1) * INTERVAL - slack / 2,
            "{hours} h: too often: {took:?}"
        );
        assert!(
            took <= WATCHED * INTERVAL + slack,
            "{hours} h: an advert is missed: {took:?}"
        );
        assert_eq!(states(&pair), before, "after {hours} h\n{}", pair[1].log());
    }
    // The time of the signed ones is of the same clock: what was on its way when that jumped may be refused.
    let signed = &look(&pair[1])[1];
    let refused: u64 = signed.rejected.iter().map(|(_, count)| count).sum();
    assert!(refused <= JUMPS.len() as u64, "{:?}", signed.rejected);
    assert!(signed.received >= u64::from(WATCHED - 1) * JUMPS.len() as u64);
    for director in &mut pair {
        director.stop().unwrap();
    }
}
