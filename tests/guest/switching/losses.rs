//! XDP is lost several times: how long that is felt.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use lab::wait;
use lb_user::dataplane::switching::LastSwitch;

use super::{
    OPEN, OUTAGE, PORT, RATE, Site, UDP, alone, config,
    load::{Beats, Load, Seen, outage},
    site, site_of, to,
};
use crate::with_modules;

/// Losses of which the median is told.
const LOSSES: usize = 3;
/// Between one switch and the next.
const PAUSE: Duration = Duration::from_secs(2);

/// What clients have of a site.
struct Clients {
    load: Load,
    beats: Beats,
}

impl Clients {
    fn of(site: &Site) -> Self {
        let load = Load::start(&site.client, to(PORT), OPEN, RATE);
        let beats = Beats::start(&site.client, to(UDP));
        wait::until_true("all connections are open", Duration::from_secs(60), || {
            Ok(load.seen.open.load(Ordering::Relaxed) == u64::from(OPEN))
        })
        .unwrap();
        Self { load, beats }
    }

    /// Nothing broke. Returns the answered datagrams.
    fn finish(self, site: &Site) -> Vec<Instant> {
        let answered = self.beats.finish();
        let seen: &Seen = &self.load.finish();
        println!("{}", seen.describe());
        let of = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        assert_eq!((of(&seen.open), of(&seen.broken)), (u64::from(OPEN), 0));
        assert_eq!(of(&seen.failed), 0, "{}", site.lbd.log());
        answered
    }
}

/// XDP is lost, IPVS forwards for a while, and gives the connections back.
fn lose(site: &Site) -> (Instant, LastSwitch) {
    thread::sleep(PAUSE);
    let lost = Instant::now();
    site.lbd.detach_xdp().unwrap();
    let status = site.wait_for("ipvs");
    thread::sleep(PAUSE);
    site.lbd.ctl(&["dataplane", "xdp"]).unwrap();
    site.lbd.ctl(&["dataplane", "auto"]).unwrap();
    wait::until_true("connections are back", Duration::from_secs(60), || {
        Ok(!site.lbd.status()?.data_plane.switching.settling)
    })
    .unwrap();
    (lost, status.data_plane.switching.last.unwrap())
}

/// Nothing breaks, however often it happens. How long datagrams were not served is printed; it depends on the
/// machine that emulates this one.
#[test]
fn losses_are_short() {
    let (_modules, _alone) = (with_modules(), alone());
    let site = site();
    let clients = Clients::of(&site);
    let losses: Vec<(Instant, LastSwitch)> = (0..LOSSES).map(|_| lose(&site)).collect();
    let answered = clients.finish(&site);
    let mut outages = Vec::new();
    for (lost, switch) in &losses {
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
}

/// A service that this host may have to answer itself is not guarded: then the kernel is told of connections before its
/// services appear, and nothing breaks either.
#[test]
fn a_loss_without_a_guard_for_all() {
    let (_modules, _alone) = (with_modules(), alone());
    let udp = "protocol = \"udp\"\n";
    let own = format!("{udp}[[service.backend]]\naddress = \"10.1.15.43\"\nweight = 0\n");
    let site = site_of(&config().replace(udp, &own));
    let rules = site.lbd.node.run("nft", &["list", "table", "inet", "lbd"]);
    let rules = rules.unwrap();
    let is_guarded = |port: u16| rules.contains(&format!(" dport {port}-"));
    assert!(is_guarded(PORT) && !is_guarded(UDP), "{rules}");
    let clients = Clients::of(&site);
    let (lost, switch) = lose(&site);
    assert!(switch.connections >= u64::from(OPEN));
    let outage = outage(&clients.finish(&site), lost);
    println!("{} ms without IPVS", outage.as_millis());
    assert!(outage < OUTAGE, "{outage:?}");
}
