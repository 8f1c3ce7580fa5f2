//! The links of instances: the kernel's word, and whether it is to be trusted yet.

use std::{
    collections::{BTreeMap, HashSet},
    future::pending,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{Daemon, succession::Succession};
use crate::{
    model::Instance,
    track::damping::{Damper, Waiting},
    vrrp::driver::Link,
};

/// A damper for each instance.
pub(super) struct Links {
    epoch: Instant,
    dampers: BTreeMap<String, Damper>,
    /// When VRRP was told of them last.
    told: Duration,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            dampers: BTreeMap::new(),
            told: Duration::ZERO,
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Ends when a link may be used that could not be when VRRP was told of it.
    pub(super) async fn due(&self) {
        let due = self.dampers.values().filter_map(|d| d.due(self.told)).min();
        match due {
            Some(due) => sleep(due.saturating_sub(self.now())).await,
            None => pending().await,
        }
    }

    /// Follows instances that are called otherwise now.
    pub(super) fn rename(&mut self, names: &Succession) {
        let before = std::mem::take(&mut self.dampers).into_iter();
        self.dampers = before
            .map(|(name, damper)| (names.rename(name), damper))
            .collect();
    }

    /// Why an instance's link that is up is not used yet.
    pub(super) fn waiting(&self, instance: &str) -> Option<Waiting> {
        self.dampers.get(instance)?.waiting(self.now())
    }
}

impl Daemon {
    /// Takes the present condition of every instance's interface.
    pub(super) fn look_at_links(&mut self) {
        let instances = &self.config.instances;
        let dampers = &mut self.links.dampers;
        dampers.retain(|name, _| instances.iter().any(|i| i.name == *name));
        let now = self.links.epoch.elapsed();
        self.links.told = now;
        for instance in instances {
            let interface = self.interfaces.by_name(&instance.interface);
            let up = interface.is_some_and(|interface| interface.up);
            let damper = dampers
                .entry(instance.name.clone())
                .or_insert_with(|| Damper::new(instance.damping, up));
            damper.configure(instance.damping);
            if damper.observe(up, now) {
                let needed = damper.waiting(now).map_or(Duration::ZERO, |w| w.needed);
                tracing::warn!(
                    instance = instance.name,
                    interface = instance.interface,
                    "the link was lost more than {} times within {}; it is used again once it was up for {}",
                    instance.damping.flaps,
                    humantime::format_duration(instance.damping.window),
                    humantime::format_duration(needed)
                );
            }
        }
    }

    /// Addresses that no advert comes from: the virtual ones, but for those of owners.
    pub(super) fn virtual_addresses(&self) -> HashSet<IpAddr> {
        let instances = self.config.instances.iter();
        instances
            .filter(|instance| instance.priority != 255)
            .flat_map(|instance| instance.held().map(|prefix| prefix.address))
            .collect()
    }

    /// The link of an instance; `taken` are all virtual addresses.
    pub(super) fn link_of(&self, instance: &Instance, taken: &HashSet<IpAddr>) -> Link {
        let is_virtual = |address| taken.contains(&address);
        let damper = self.links.dampers.get(&instance.name);
        if damper.is_some_and(|damper| !damper.is_usable(self.links.now())) {
            return Link::Down;
        }
        match self.interfaces.by_name(&instance.interface) {
            Some(interface) if interface.up => interface
                .source(instance.source, instance.is_v6(), is_virtual)
                .map_or(Link::Down, |source| Link::Up {
                    ifindex: interface.ifindex,
                    source,
                }),
            Some(_) | None => Link::Down,
        }
    }

    /// Tells VRRP what became of its interfaces.
    pub(super) fn follow_links(&mut self) {
        self.look_at_links();
        if let Some(vrrp) = &self.vrrp {
            let taken = self.virtual_addresses();
            for instance in &self.config.instances {
                vrrp.link(instance, self.link_of(instance, &taken));
            }
        }
        self.follow_watches();
    }
}
