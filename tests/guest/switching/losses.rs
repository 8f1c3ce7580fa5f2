//! XDP is lost several times: how long that is felt.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use lab::wait;

use super::{
    OPEN, OUTAGE, PORT, RATE, UDP,
    load::{Beats, Load, outage},
    site, to,
};
use crate::with_modules;

/// Losses of which the median is told.
const LOSSES: usize = 5;
/// Between one switch and the next.
const PAUSE: Duration = Duration::from_secs(3);

/// Nothing breaks, however often it happens. How long datagrams were not served is printed; it depends on the
/// machine that emulates this one.
#[test]
fn losses_are_short() {
    let _modules = with_modules();
    let site = site();
    let load = Load::start(&site.client, to(PORT), OPEN, RATE);
    let beats = Beats::start(&site.client, to(UDP));
    wait::until_true("all connections are open", Duration::from_secs(60), || {
        Ok(load.seen.open.load(Ordering::Relaxed) == u64::from(OPEN))
    })
    .unwrap();
    let mut losses = Vec::new();
    let mut switches = Vec::new();
    for _ in 0..LOSSES {
        thread::sleep(PAUSE);
        losses.push(Instant::now());
        site.lbd.detach_xdp().unwrap();
        site.wait_for("ipvs");
        let status = site.lbd.status().unwrap();
        switches.push(status.data_plane.switching.last.unwrap());
        thread::sleep(PAUSE);
        site.lbd.ctl(&["dataplane", "xdp"]).unwrap();
        site.lbd.ctl(&["dataplane", "auto"]).unwrap();
        wait::until_true("connections are back", Duration::from_secs(60), || {
            Ok(!site.lbd.status()?.data_plane.switching.settling)
        })
        .unwrap();
    }
    let answered = beats.finish();
    let seen = load.finish();
    let mut outages = Vec::new();
    for (lost, switch) in losses.iter().zip(&switches) {
        let outage = outage(&answered, *lost);
        println!(
            "{} ms without IPVS, {} of them for {} connections",
            outage.as_millis(),
            switch.took_us / 1_000,
            switch.connections
        );
        assert!(outage < OUTAGE, "{outage:?}");
        outages.push(outage);
    }
    outages.sort_unstable();
    println!(
        "the median of {LOSSES} losses: {} ms",
        outages[LOSSES / 2].as_millis()
    );
    println!("{}", seen.describe());
    let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    assert_eq!((of(&seen.open), of(&seen.broken)), (u64::from(OPEN), 0));
    assert_eq!(of(&seen.failed), 0, "{}", site.lbd.log());
}
