//! lbd as it makes the checks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Director, Lab, Node, network::INTERFACE, wait};
use lb_user::{
    api::proto::{Event, EventPage, ProbesStatus},
    model::Spread,
};

use crate::load::{self, DYING, PATIENCE, SERVERS, SERVICES, Steady, Witness, deaths};

/// What was measured.
pub struct Ours {
    pub steady: Steady,
    /// How late attempts began meanwhile, by lbd's own clock.
    pub late: Counted,
    /// All that had been counted at the end of it, before the deaths.
    pub after: ProbesStatus,
    /// From a death to the data plane that follows.
    pub deaths: Vec<f64>,
    /// From the end of a probe to the data plane that follows.
    pub reaction: Counted,
}

/// What was counted within a time: of counters, what can be subtracted.
pub struct Counted {
    pub count: u64,
    pub sum_s: f64,
    pub below: Vec<(u32, u64)>,
}

impl Counted {
    pub fn mean_ms(&self) -> f64 {
        self.sum_s * 1e3 / self.count.max(1) as f64
    }
}

/// Runs it on a node.
pub fn measure(
    lab: &Lab,
    node: &Node,
    server: &Node,
    time: Duration,
    count: usize,
) -> Result<Ours> {
    let mut director = Director::new(lab, node, &config())?;
    director.start(lab)?;
    let pid = director.process()?.id();
    let mut before = None;
    let steady = load::steady(server, &[pid], time, || {
        before = Some(director.status()?.probes);
        Ok(())
    })?;
    let status = director.status()?;
    let late = since(
        &status.probes.lateness,
        &before.context("it began")?.lateness,
    );
    let down = status.checks.iter().filter(|c| !c.up).count();
    // That which will live and die.
    ensure!(down == 1, "{down} real servers are down");
    let mut witness = Told {
        director: &director,
        reaction: status.probes.reaction.clone(),
    };
    let deaths = deaths(server, count, &mut witness)?;
    let reaction = since(&director.status()?.probes.reaction, &status.probes.reaction);
    director.stop()?;
    Ok(Ours {
        steady,
        late,
        after: status.probes,
        deaths,
        reaction,
    })
}

/// Services with the load, and one whose real server dies.
fn config() -> String {
    let service = |port: usize, asked: usize, servers: &str| {
        format!(
            "[[service]]\naddress = \"10.1.15.50:{port}\"\n[[service.check]]\ntype = \"tcp\"\nport = {asked}\n\
             interval = \"1s\"\nretries = 0\nconnect_timeout = \"1s\"\n{servers}"
        )
    };
    let server = |address: String| format!("[[service.backend]]\naddress = \"{address}\"\n");
    let all: String = (1..=SERVERS)
        .map(|n| server(format!("10.1.32.{n}")))
        .collect();
    let load: String = (0..SERVICES)
        .map(load::ports)
        .map(|[port, asked]| service(port, asked, &all))
        .collect();
    let dying = usize::from(DYING);
    let dying = service(dying, dying, &server("10.1.15.45".to_owned()));
    format!("[dataplane]\ninterfaces = [\"{INTERFACE}\"]\n{dying}{load}")
}

/// Events tell of the verdict, which cost the director little: to ask for all of its status every few milliseconds
/// would keep it busy. They bear the time before the data plane is changed; what is counted from the end of the probe
/// to the end of that is added.
struct Told<'a> {
    director: &'a Director,
    /// What was counted before the server died.
    reaction: Spread,
}

impl Told<'_> {
    fn last(&self) -> Result<Option<Event>> {
        let page: EventPage = serde_json::from_str(&self.director.ctl(&["--json", "events"])?)?;
        let about = |event: &Event| event.text.starts_with("real server 10.1.15.45 is ");
        let all = page.events.into_iter().filter(about);
        Ok(all.max_by_key(|event| event.last_ms))
    }

    fn wait_for(&self, what: &str) -> Result<Event> {
        let text = format!("real server 10.1.15.45 is {what}");
        wait::until(&text, PATIENCE, || {
            Ok(self.last()?.filter(|event| event.text.starts_with(&text)))
        })
    }
}

impl Witness for Told<'_> {
    fn until_up(&mut self) -> Result<()> {
        self.wait_for("up").map(|_| ())
    }

    fn before_it_dies(&mut self) -> Result<()> {
        self.reaction = self.director.status()?.probes.reaction;
        Ok(())
    }

    fn until_down(&mut self) -> Result<f64> {
        let event = self.wait_for("down")?;
        let reaction = wait::until("the data plane has followed", PATIENCE, || {
            let reaction = since(&self.director.status()?.probes.reaction, &self.reaction);
            Ok((reaction.count > 0).then_some(reaction))
        })?;
        Ok(event.last_ms as f64 + reaction.sum_s * 1e3)
    }
}

/// What has been counted since.
fn since(now: &Spread, before: &Spread) -> Counted {
    let below = now.below.iter().zip(&before.below);
    Counted {
        count: now.count - before.count,
        sum_s: now.sum_s - before.sum_s,
        below: below
            .map(|((bound, now), (_, before))| (*bound, now - before))
            .collect(),
    }
}
