//! Real servers that take connections and answer none: what the data plane sees lets checks be made at once,
//! and decides nothing.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lab::{
    Guide,
    guide::{self, Settings, VIP},
    wait,
};
use lb_user::api::proto::{CheckStatus, EventPage};

const LONG: Duration = Duration::from_secs(40);

fn status_of(guide: &Guide, address: &str) -> anyhow::Result<CheckStatus> {
    let all = guide.node1.status()?.checks;
    let found = all.into_iter().find(|check| check.backend == address);
    found.ok_or_else(|| anyhow::anyhow!("no {address}"))
}

/// Clients that give up soon.
fn knock(guide: &Guide) -> anyhow::Result<()> {
    guide.client.within(|| {
        let vip = SocketAddr::from((VIP, 80));
        for _ in 0..6 {
            let _ = TcpStream::connect_timeout(&vip, Duration::from_millis(50));
        }
    })
}

/// Plays it with a data plane whose configuration begins so.
pub fn silence_speeds_up_checks_and_decides_nothing(mode: &str) {
    let mut guide = Guide::prepare().unwrap();
    let config = guide::config(&Settings::of(100));
    let begin = config.find("[service.check]").unwrap();
    let end = config.find("[[service.backend]]").unwrap();
    let check = "[service.check]\ntype = \"tcp\"\ninterval = \"10m\"\nwarmup = \"100ms\"\nconnect_timeout = \"500ms\"\nretries = 0\n";
    let config = format!("{mode}{}{check}{}", &config[..begin], &config[end..]);
    guide.node1.configure(&config).unwrap();
    guide.node1.start(&guide.lab).unwrap();
    guide
        .node1
        .wait_for_backends(&["up", "up", "draining"])
        .unwrap();
    let (rs1, rs2) = ("10.1.15.45", "10.1.15.46");
    wait::until_true("both were asked", LONG, || {
        let attempts =
            |address| Ok::<_, anyhow::Error>(status_of(&guide, address)?.checks[0].attempts);
        Ok(attempts(rs1)? >= 1 && attempts(rs2)? >= 1)
    })
    .unwrap();
    wait::until_true("node1 serves", LONG, || Ok(guide.node1.service()?.serving)).unwrap();
    let before = status_of(&guide, rs2).unwrap().checks[0].attempts;

    // Neither answers clients any more; one of them answers the director.
    let block = |server: &lab::server::WebServer, whom: &str| {
        let route = ["route", "add", "blackhole", whom];
        server.node().ip(&route).unwrap();
    };
    block(&guide.rs1, "10.1.15.43/32");
    for server in [&guide.rs1, &guide.rs2] {
        block(server, "10.1.15.1/32");
    }
    wait::until_true("rs1 is down long before its time", LONG, || {
        knock(&guide)?;
        Ok(!status_of(&guide, rs1)?.up)
    })
    .unwrap();
    let cause = status_of(&guide, rs1).unwrap().cause.unwrap_or_default();
    assert!(cause.contains("did not accept a connection"), "{cause}");
    let said = format!("real server {rs2} is up by its checks, but");
    wait::until_true("rs2 is under suspicion", LONG, || {
        knock(&guide)?;
        let problems = guide.node1.status()?.problems;
        Ok(problems.iter().any(|problem| problem.contains(&said)))
    })
    .unwrap();
    // Once in an interval, and its check passes.
    wait::until_true("rs2 was asked once more", LONG, || {
        Ok(status_of(&guide, rs2)?.checks[0].attempts == before + 1)
    })
    .unwrap();
    let more = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < more {
        knock(&guide).unwrap();
    }
    let seen = status_of(&guide, rs2).unwrap();
    assert_eq!((seen.up, seen.checks[0].attempts), (true, before + 1));
    let page = guide.node1.ctl(&["--json", "events"]).unwrap();
    let page: EventPage = serde_json::from_str(&page).unwrap();
    for address in [rs1, rs2] {
        let hint = |text: &str| text.contains(address) && text.contains("checks are made at once");
        let hints = page.events.iter().filter(|event| hint(&event.text));
        assert_eq!(hints.count(), 1, "{address}: {:?}", page.events);
    }
}
