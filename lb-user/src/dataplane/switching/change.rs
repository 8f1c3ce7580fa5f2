//! What is done when XDP is lost, when it can be had again, and when an operator wants it so.

use std::time::{Duration, Instant};

use super::{Alone, Kind, News, Order, Planes, SlowPath, Turn, slow};
use crate::dataplane::{
    DataPlane, DataPlaneError, Plan,
    ipvs::{Fed, Ipvs},
    xdp::Xdp,
};

/// After the return to XDP: packets of connections of the kernel's that were on their way have arrived by
/// then.
const SETTLE: Duration = Duration::from_secs(1);
/// XDP without a fallback is put back at once, but not more often than this: the daemon tries again every
/// second anyway.
const PUT_BACK: Duration = Duration::from_secs(1);

impl Planes {
    /// Looks whether XDP still runs where it should, and does what is due. Returns what happened since. To be
    /// called every few milliseconds: it asks the kernel one question for each interface.
    pub fn watch(&mut self) -> Option<News> {
        match self.forwarding() {
            Kind::Xdp => {
                if self.settling.is_some_and(|until| until <= Instant::now()) {
                    self.settle();
                }
                let lost = self.pair.xdp().map(Xdp::take_lost).unwrap_or_default();
                if !lost.is_empty() {
                    let from = lost.join(", ");
                    self.on_lost(&format!("somebody detached the XDP program from {from}"));
                }
            }
            Kind::Ipvs => {
                if self.retry_in().is_some_and(|left| left.is_zero()) {
                    // An attempt that is refused leads to the next.
                    let _ = self.turn_to_xdp("XDP can forward again");
                }
            }
        }
        self.news.pop_front()
    }

    /// Follows an operator's order. Says what is so now.
    pub fn order(&mut self, order: Order) -> Result<String, String> {
        if let Some(alone) = &self.alone {
            let only = self.forwarding().label();
            return Err(format!("there is only {only}: {alone}"));
        }
        match (order, self.forwarding()) {
            (Order::Only(Kind::Ipvs), Kind::Xdp) => {
                self.turn_to_ipvs("an operator wants IPVS")
                    .map_err(|error| error.to_string())?;
            }
            (Order::Only(Kind::Xdp), Kind::Ipvs) => {
                self.turn_to_xdp("an operator wants XDP")
                    .map_err(|error| error.to_string())?;
            }
            (Order::Auto, Kind::Ipvs) => {
                let _ = self.turn_to_xdp("XDP can forward again");
            }
            (Order::Only(Kind::Ipvs), Kind::Ipvs)
            | (Order::Auto | Order::Only(Kind::Xdp), Kind::Xdp) => {}
        }
        self.order = order;
        let wanted = match order {
            Order::Auto => "XDP where it can be, else IPVS".to_owned(),
            Order::Only(kind) => format!("{} until a reload or a restart", kind.label()),
        };
        Ok(format!("{wanted}; {} forwards", self.forwarding().label()))
    }

    /// How long until XDP is tried again, if it will be: what an operator ordered stays.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        match self.order {
            Order::Auto => self.pace.left(self.now()),
            Order::Only(_) => None,
        }
    }

    /// XDP may have been refused on an interface that is there: one that was made again cannot do it.
    pub(super) fn after_following(&mut self) {
        let Some(xdp) = self.pair.xdp() else { return };
        match xdp.refusal().map(str::to_owned) {
            None => self.trouble = None,
            Some(why) if self.fallback().is_ok() => self.on_lost(&why),
            Some(_) => {}
        }
    }

    /// What would take over from XDP, or why nothing would.
    pub(super) fn fallback(&self) -> Result<(), String> {
        use super::Pair;
        let alone = self.alone.as_ref();
        match (&self.pair, self.order) {
            _ if alone.is_some() => Err(Alone::words(alone)),
            (Pair::Xdp(_) | Pair::Ipvs(_), _) => Err(Alone::words(None)),
            (Pair::Both { .. }, Order::Only(kind)) => {
                Err(format!("an operator wants {}", kind.label()))
            }
            (Pair::Both { .. }, Order::Auto) => lack_of_ipvs(&self.plan).map_or(Ok(()), Err),
        }
    }

    fn on_lost(&mut self, reason: &str) {
        let obstacle = match self.fallback() {
            Ok(()) => match self.turn_to_ipvs(reason) {
                Ok(()) => return,
                Err(error) => error.to_string(),
            },
            Err(obstacle) => obstacle,
        };
        self.put_back(reason, &obstacle);
    }

    /// XDP is all there is: it is attached again.
    fn put_back(&mut self, reason: &str, obstacle: &str) {
        let is_late = self.put_back.is_none_or(|at| at.elapsed() >= PUT_BACK);
        self.put_back = Some(Instant::now());
        let present = self.present.clone();
        let Some(xdp) = self.pair.xdp() else { return };
        if is_late {
            xdp.follow_interfaces(&present);
        }
        let (text, is_bad) = match xdp.refusal() {
            _ if !is_late => (format!("{reason}; trying again within a second"), true),
            None => (format!("{reason}; it was attached again"), false),
            Some(why) => (format!("{reason}; attaching it again fails: {why}"), true),
        };
        let text = format!("{text} (no fallback: {obstacle})");
        self.tell(text, is_bad);
    }

    /// IPVS forwards from now on, with the connections of XDP.
    fn turn_to_ipvs(&mut self, reason: &str) -> Result<(), DataPlaneError> {
        let begin = Instant::now();
        self.settling = None;
        let (plan, present) = (self.plan.clone(), self.present.clone());
        let guarded = self.guarded;
        let Some((xdp, ipvs)) = self.pair.both() else {
            return Err(DataPlaneError::NoneWorks(Alone::words(self.alone.as_ref())));
        };
        xdp.set_handover(false);
        let moved = ipvs.set_telling(true);
        let (fed, inner) = match moved.and_then(|()| move_to_ipvs(xdp, ipvs, &plan, guarded)) {
            Ok(moved) => moved,
            Err(error) => {
                slow::close(xdp);
                let _ = ipvs.detach();
                xdp.follow_interfaces(&present);
                self.slow = SlowPath::default();
                return Err(error);
            }
        };
        slow::close(xdp);
        ipvs.leave_slow_path();
        self.slow = SlowPath::default();
        if let Err(error) = ipvs.set_telling(false) {
            tracing::warn!(%error, "a daemon that follows this one may not know that IPVS has the connections");
        }
        let now = self.now();
        self.pace.lost(now);
        self.turned(Kind::Ipvs, inner, reason, begin, fed.connections);
        if let Some(trouble) = fed.trouble {
            let text = format!("connections may break: {trouble}");
            self.news.push_back(News { text, is_bad: true });
        }
        Ok(())
    }

    /// XDP forwards from now on, with the connections of IPVS.
    fn turn_to_xdp(&mut self, reason: &str) -> Result<(), DataPlaneError> {
        let begin = Instant::now();
        let is_likely = self.refusal.is_none();
        let (plan, present) = (self.plan.clone(), self.present.clone());
        let Some((xdp, ipvs)) = self.pair.both() else {
            return Err(DataPlaneError::NoneWorks(Alone::words(self.alone.as_ref())));
        };
        match move_to_xdp(xdp, ipvs, &plan, &present, is_likely) {
            Ok((connections, inner)) => {
                self.settling = Some(Instant::now() + SETTLE);
                let now = self.now();
                self.pace.returned(now);
                self.turned(Kind::Xdp, inner, reason, begin, connections);
                Ok(())
            }
            Err(error) => {
                let now = self.now();
                self.pace.refused(now);
                let text = error.to_string();
                // Once for each reason.
                if self.refusal.as_ref() != Some(&text) {
                    tracing::warn!(%error, "XDP cannot forward yet");
                    self.refusal = Some(text);
                }
                Err(error)
            }
        }
    }

    /// The connections that an earlier daemon left to IPVS come to XDP.
    pub(super) fn inherit(&mut self) {
        let plan = self.plan.clone();
        let Some((xdp, ipvs)) = self.pair.both() else {
            return;
        };
        ipvs.adopt(&plan);
        match take_connections(xdp, ipvs) {
            Ok(connections) => {
                tracing::info!(connections, "took over from the IPVS of an earlier lbd");
            }
            Err(error) => tracing::error!(error, "connections of an earlier lbd may break"),
        }
        self.settling = Some(Instant::now() + SETTLE);
    }

    /// The last connections come, and IPVS lets go.
    fn settle(&mut self) {
        self.settling = None;
        let Some((xdp, ipvs)) = self.pair.both() else {
            return;
        };
        if let Err(error) = take_connections(xdp, ipvs) {
            tracing::error!(
                error,
                "connections of IPVS that XDP does not know may break"
            );
        }
        xdp.set_handover(false);
        if let Err(error) = ipvs.detach() {
            tracing::error!(%error, "IPVS still holds services; XDP goes before them");
        }
        self.follow_slow_path();
    }

    /// `inner` is that one's own number of what it forwards.
    fn turned(&mut self, to: Kind, inner: u64, reason: &str, begin: Instant, connections: usize) {
        self.pair.turn_to(to);
        self.trouble = None;
        self.refusal = None;
        reason.clone_into(&mut self.reason);
        let took = begin.elapsed();
        self.turns[to as usize] += 1;
        // Another plane, another generation.
        self.generation += 1;
        self.inner = inner;
        self.last = Some(Turn {
            to,
            reason: reason.to_owned(),
            at: Instant::now(),
            took,
            connections,
        });
        let name = match to {
            Kind::Xdp => "XDP",
            Kind::Ipvs => "IPVS",
        };
        let text = format!(
            "{name} forwards: {reason}; {connections} connections taken over in {:.1} ms",
            took.as_secs_f64() * 1_000.0
        );
        self.tell(text, false);
    }

    fn tell(&mut self, text: String, is_bad: bool) {
        /// More than this between two looks is not worth telling.
        const AT_ONCE: usize = 16;
        if is_bad {
            self.trouble = Some(text.clone());
        }
        if self.news.len() < AT_ONCE {
            self.news.push_back(News { text, is_bad });
        }
    }
}

/// Why IPVS cannot have the plan's services.
fn lack_of_ipvs(plan: &Plan) -> Option<String> {
    plan.services.iter().find_map(|service| {
        let what = service.ipvs_lacks()?;
        Some(format!("{}: IPVS has no {what}", service.id))
    })
}

/// What the kernel was told, and IPVS's number of the plan. `guarded` is whether no packet of a service comes to
/// IPVS before this has returned, but for those of the slow path, which have their real server.
fn move_to_ipvs(
    xdp: &mut Xdp,
    ipvs: &mut Ipvs,
    plan: &Plan,
    guarded: bool,
) -> Result<(Fed, u64), DataPlaneError> {
    if guarded {
        // Other directors hear of them when it knows them.
        let services = Plan::of(plan.services.clone());
        let inner = ipvs.serve(&services)?;
        xdp.release();
        let fed = tell(xdp, ipvs, plan)?;
        return Ok((fed, inner));
    }
    // Before its services appear: from then on it schedules datagrams of connections that it does not know. What fails
    // here is told again below.
    if let Some(trouble) = ipvs.learn(plan, &xdp.connections())?.trouble {
        tracing::warn!("{trouble}; datagrams may go to another real server");
    }
    ipvs.prepare(plan)?;
    xdp.release();
    let fed = tell(xdp, ipvs, plan)?;
    let inner = ipvs.serve(plan)?;
    Ok((fed, inner))
}

/// The kernel learns all connections, and binds them to real servers of its services: those that it knew before too.
fn tell(xdp: &Xdp, ipvs: &mut Ipvs, plan: &Plan) -> Result<Fed, DataPlaneError> {
    let fed = ipvs.learn(plan, &xdp.connections())?;
    let Some(trouble) = &fed.trouble else {
        return Ok(fed);
    };
    tracing::warn!("{trouble}; telling it again");
    let again = ipvs.learn(plan, &xdp.connections())?;
    Ok(Fed {
        connections: again.connections.max(fed.connections),
        ..again
    })
}

/// How many connections came, and XDP's number of the plan.
fn move_to_xdp(
    xdp: &mut Xdp,
    ipvs: &Ipvs,
    plan: &Plan,
    present: &[(String, u32)],
    is_likely: bool,
) -> Result<(usize, u64), DataPlaneError> {
    let inner = xdp.apply(plan)?;
    xdp.forget_connections();
    if is_likely {
        // Before a packet comes: a SYN that is repeated would be scheduled once more, and a client that sticks go
        // elsewhere. But the list is not read in vain time and again.
        take_connections(xdp, ipvs).map_err(DataPlaneError::NoneWorks)?;
    }
    xdp.set_handover(true);
    xdp.attach_again(present)?;
    // What has begun meanwhile.
    match take_connections(xdp, ipvs) {
        Ok(taken) => Ok((taken, inner)),
        Err(error) => {
            // Without them every connection would break.
            xdp.release();
            Err(DataPlaneError::NoneWorks(error))
        }
    }
}

fn take_connections(xdp: &mut Xdp, ipvs: &Ipvs) -> Result<usize, String> {
    let connections = ipvs.connections()?;
    xdp.take_over(&connections)
        .map_err(|error| error.to_string())
}
