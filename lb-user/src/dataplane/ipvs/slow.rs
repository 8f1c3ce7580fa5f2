//! The slow path: services of IPVS for packets that the XDP program leaves to the kernel. Each is of a firewall mark, and
//! its only real server is the one that the program chose, so the kernel cannot choose another. Pure.
//!
//! IPVS finds a TCP connection by its addresses and ports before it looks at the mark. One that it made for a packet would
//! keep its real server for minutes, whatever the program decides about the same client's port meanwhile. So a
//! service that has connections is replaced every two seconds by one with another mark, and the connections end
//! with it (`expire_nodest_conn`): the next packet is scheduled by its own mark. Datagrams leave none behind.
//!
//! These services are lbd's own: they are no part of a plan, and no view shows them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use lb_common::slow::{MARK, MARK_MASK};

use super::{
    codec::{Destination, Key, Service, flags},
    desired::{self, Wanted},
    kernel::Table,
};
use crate::{
    dataplane::{BackendKey, Plan},
    model::Target,
};

/// With more real servers there is no slow path: those with traffic are read back every second, one question for each.
pub const MAX_SERVERS: usize = 4096;
/// Connections last between once and four times as long: a look a second sees each step late.
pub const RENEWAL: Duration = Duration::from_secs(2);

/// A real server as the program knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowServer {
    /// The program's id of it.
    pub id: u16,
    /// Whose it is.
    pub key: BackendKey,
    /// How IPVS reaches it.
    pub server: Destination,
}

/// A real server and the number of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    server: SlowServer,
    number: u16,
}

/// The services of the slow path.
#[derive(Debug, Default)]
pub struct Slow {
    /// By the program's id.
    ways: BTreeMap<u16, Way>,
    /// Replaced ones, whose connections may still get packets.
    former: Vec<Way>,
    last: u16,
    renewed: Duration,
    /// The program sends nothing here any more: services stay while they have connections.
    is_left: bool,
}

/// The real servers of a plan that can have a slow path, of those that the program has ids for. This host itself needs
/// none.
pub fn servers(plan: &Plan, ids: &[(BackendKey, u16)]) -> Vec<SlowServer> {
    let ids: HashMap<BackendKey, u16> = ids.iter().copied().collect();
    let services = plan.services.iter();
    let all = services.flat_map(|service| service.backends.iter().map(move |b| (service, b)));
    all.filter(|(_, backend)| backend.target != Target::Local && !backend.state.is_out())
        .filter_map(|(service, backend)| {
            let key = (service.id, backend.target, backend.sorry);
            let server = Destination {
                port: 0,
                weight: 1,
                upper: 0,
                lower: 0,
                ..desired::server(service, backend)
            };
            let id = *ids.get(&key)?;
            Some(SlowServer { id, key, server })
        })
        .collect()
}

/// Whether a service is one of the slow path's.
pub const fn is_slow(key: &Key) -> bool {
    match key {
        Key::Mark { mark, .. } => *mark & MARK_MASK == MARK,
        Key::Address(..) => false,
    }
}

impl Slow {
    /// Whether the program may send packets here.
    pub fn is_open(&self) -> bool {
        !self.is_left && !self.is_empty()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty() && self.former.is_empty()
    }

    /// Ids whose service is to go, or to be another, if these are the real servers.
    pub fn outdated(&self, servers: &[SlowServer]) -> Vec<u16> {
        let wanted: HashMap<u16, &SlowServer> = servers.iter().map(|s| (s.id, s)).collect();
        let ways = self.ways.iter();
        ways.filter(|(id, way)| wanted.get(id) != Some(&&way.server))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Makes these the real servers.
    pub fn follow(&mut self, servers: &[SlowServer]) {
        self.is_left = false;
        for id in self.outdated(servers) {
            self.ways.remove(&id);
        }
        let wanted: HashSet<BackendKey> = servers.iter().map(|server| server.key).collect();
        self.former.retain(|way| wanted.contains(&way.server.key));
        let mut taken = self.taken();
        for server in servers {
            if !self.ways.contains_key(&server.id) {
                let number = self.next(&mut taken);
                let server = *server;
                self.ways.insert(server.id, Way { server, number });
            }
        }
    }

    /// Gives those that have connections another service. The ones before the last go. Says whether anything changed.
    pub fn renew(&mut self, held: &Table, now: Duration) -> bool {
        if now.saturating_sub(self.renewed) < RENEWAL {
            return false;
        }
        self.renewed = now;
        let were_some = !self.former.is_empty();
        self.former.clear();
        let busy = busy(held);
        let mut taken = self.taken();
        let has = |way: &Way| busy.contains(&way.service_key());
        let ids: Vec<u16> = self
            .ways
            .values()
            .filter(|way| has(way))
            .map(|way| way.server.id)
            .collect();
        for id in ids {
            let number = self.next(&mut taken);
            if let Some(way) = self.ways.get_mut(&id) {
                let new = Way { number, ..*way };
                self.former.push(std::mem::replace(way, new));
            }
        }
        were_some || !self.former.is_empty()
    }

    /// There is no slow path any more. Numbers go on where they were.
    pub fn clear(&mut self) {
        *self = Self {
            last: self.last,
            ..Self::default()
        };
    }

    /// The program sends nothing here any more.
    pub const fn leave(&mut self) {
        self.is_left = true;
    }

    /// Once it is left, lets go of services without connections, and of those whose real server has none in the plan.
    pub fn let_go(&mut self, held: &Table, plan: &Plan) {
        if !self.is_left || self.is_empty() {
            return;
        }
        let busy = busy(held);
        let services = plan.services.iter();
        let alive: HashSet<BackendKey> = services
            .flat_map(|service| {
                let alive = service.backends.iter().filter(|b| !b.state.is_out());
                alive.map(|b| (service.id, b.target, b.sorry))
            })
            .collect();
        let stays =
            |way: &Way| busy.contains(&way.service_key()) && alive.contains(&way.server.key);
        self.ways.retain(|_, way| stays(way));
        self.former.retain(stays);
    }

    /// The mark for packets of each real server, by the program's id.
    pub fn marks(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.ways.iter().map(|(id, way)| (*id, way.mark()))
    }

    /// The services that IPVS should hold.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> + '_ {
        self.all().map(Way::wanted)
    }

    /// What identifies them in the kernel.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.all().map(Way::service_key)
    }

    /// What identifies a service of the slow path's that no packet comes to.
    pub fn spare(&mut self) -> Key {
        let number = self.next(&mut self.taken());
        Key::Mark {
            mark: MARK | u32::from(number),
            v6: false,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Way> {
        self.ways.values().chain(&self.former)
    }

    fn taken(&self) -> HashSet<u16> {
        self.all().map(|way| way.number).collect()
    }

    /// A number that nobody has, and that nobody had for as long as possible. 0 is none.
    fn next(&mut self, taken: &mut HashSet<u16>) -> u16 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && taken.insert(self.last) {
                return self.last;
            }
        }
    }
}

impl Way {
    const fn mark(&self) -> u32 {
        MARK | self.number as u32
    }

    const fn service_key(&self) -> Key {
        let (service, _, _) = self.server.key;
        Key::Mark {
            mark: self.mark(),
            v6: service.address.is_ipv6(),
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            service: Service {
                // There is nothing to choose from; this one is in every kernel that has IPVS.
                scheduler: "rr".to_owned(),
                flags: flags::ONE_PACKET,
                ..Service::bare(self.service_key())
            },
            servers: vec![self.server.server],
            last_weights: vec![0],
            lingering: Vec::new(),
            ordered: false,
        }
    }
}

/// Services of the slow path that have connections.
fn busy(held: &Table) -> HashSet<Key> {
    let has = |servers: &[super::codec::DestinationEntry]| {
        servers
            .iter()
            .any(|entry| entry.active + entry.inactive > 0)
    };
    let slow = held.iter().filter(|(entry, _)| is_slow(&entry.service.key));
    slow.filter(|(_, servers)| has(servers))
        .map(|(entry, _)| entry.service.key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dataplane::{
            ipvs::codec::{DestinationEntry, Forward, ServiceEntry, Stats},
            plan::{BackendState, PlannedBackend, PlannedService},
        },
        model::{Forwarding, Protocol, Scheduler, ServiceId, Tunnel},
    };

    fn plan(states: &[BackendState]) -> Plan {
        let id = ServiceId::new(Protocol::Tcp, "10.1.15.50:80".parse().unwrap());
        let host = |last: u8| Target::Host([10, 1, 15, last].into());
        let mut backends: Vec<PlannedBackend> = (45..)
            .zip(states)
            .map(|(last, state)| PlannedBackend::new(host(last), 5, *state))
            .collect();
        backends.push(PlannedBackend::new(Target::Local, 1, BackendState::Up));
        Plan::of(vec![PlannedService::new(id, 0, Scheduler::Wrr, backends)])
    }

    fn ids(plan: &Plan) -> Vec<(BackendKey, u16)> {
        let service = &plan.services[0];
        let keys = service
            .backends
            .iter()
            .map(|b| (service.id, b.target, b.sorry));
        keys.zip(7..).collect()
    }

    fn all(plan: &Plan) -> Vec<SlowServer> {
        servers(plan, &ids(plan))
    }

    /// What the kernel holds, with a connection for each of these.
    fn table(slow: &Slow, busy: &[Key]) -> Table {
        let entry = |wanted: Wanted| {
            let service = wanted.service;
            let server = DestinationEntry {
                destination: wanted.servers[0],
                active: u32::from(busy.contains(&service.key)),
                inactive: 0,
                persistent: 0,
                stats: Stats::default(),
            };
            let stats = Stats::default();
            (ServiceEntry { service, stats }, vec![server])
        };
        slow.wanted().map(entry).collect()
    }

    #[test]
    fn who_has_a_way() {
        use BackendState::{Down, Draining, Resetting, Unresolved, Up};
        let plan = plan(&[Up, Draining, Unresolved, Down, Resetting]);
        let listed = all(&plan);
        assert_eq!(listed.iter().map(|s| s.id).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(listed[1].server.port, 0);
        assert_eq!(listed[1].server.weight, 1);
        let mut tunnelled = plan;
        tunnelled.services[0].forwarding = Forwarding::Tunnel(Tunnel::Ipip);
        assert_eq!(all(&tunnelled)[0].server.forward, Forward::Tunnel);
    }

    #[test]
    fn one_service_for_each_real_server() {
        let plan = plan(&[BackendState::Up; 3]);
        let mut slow = Slow::default();
        assert!(!slow.is_open());
        slow.follow(&all(&plan));
        assert!(slow.is_open());
        let marks: Vec<_> = slow.marks().collect();
        assert_eq!(marks, [(7, MARK | 1), (8, MARK | 2), (9, MARK | 3)]);
        for wanted in slow.wanted() {
            assert!(is_slow(&wanted.service.key) && wanted.servers.len() == 1);
        }
        // Following the same changes nothing; an id with another owner has another service.
        slow.follow(&all(&plan));
        assert!(slow.marks().eq(marks));
        let mut others = all(&plan);
        others[1].server.address = [10, 1, 15, 99].into();
        assert_eq!(slow.outdated(&others), [8]);
        others.remove(2);
        assert_eq!(slow.outdated(&others), [8, 9]);
        slow.follow(&others);
        assert!(slow.marks().eq([(7, MARK | 1), (8, MARK | 4)]));
    }

    #[test]
    fn connections_end_with_their_service() {
        let plan = plan(&[BackendState::Up; 2]);
        let mut slow = Slow::default();
        slow.follow(&all(&plan));
        let first: Vec<Key> = slow.keys().collect();
        let held = table(&slow, &first[..1]);
        assert!(!slow.renew(&held, RENEWAL / 2));
        assert!(slow.keys().eq(first.clone()), "too soon");
        assert!(slow.renew(&held, RENEWAL));
        assert!(slow.marks().eq([(7, MARK | 3), (8, MARK | 2)]));
        assert!(
            slow.keys().any(|key| key == first[0]),
            "for those on their way"
        );
        assert!(slow.renew(&table(&slow, &[]), RENEWAL * 2));
        assert!(!slow.renew(&table(&slow, &[]), RENEWAL * 3), "all is quiet");
        assert!(slow.keys().all(|key| key != first[0]));
        assert_eq!(slow.keys().count(), 2);
    }

    #[test]
    fn what_has_connections_stays_when_it_is_left() {
        let plan = plan(&[BackendState::Up; 3]);
        let mut slow = Slow::default();
        slow.follow(&all(&plan));
        let keys: Vec<Key> = slow.keys().collect();
        let held = table(&slow, &keys[..2]);
        slow.let_go(&held, &plan);
        assert_eq!(slow.keys().count(), 3, "not left yet");
        slow.leave();
        assert!(!slow.is_open());
        slow.let_go(&held, &plan);
        assert!(slow.keys().eq(keys[..2].to_vec()));
        // Connections of one that is down go elsewhere.
        let mut one_down = plan;
        one_down.services[0].backends[0].state = BackendState::Down;
        slow.let_go(&held, &one_down);
        assert!(slow.keys().eq([keys[1]]));
        slow.let_go(&table(&slow, &[]), &one_down);
        assert!(slow.is_empty());
        slow.clear();
        slow.follow(&all(&one_down));
        assert!(slow.marks().eq([(8, MARK | 4), (9, MARK | 5)]));
    }

    #[test]
    fn numbers_are_not_used_again_soon() {
        let mut slow = Slow {
            last: u16::MAX - 1,
            ..Slow::default()
        };
        let plan = plan(&[BackendState::Up; 2]);
        slow.follow(&all(&plan));
        assert!(slow.marks().eq([(7, MARK | 0xffff), (8, MARK | 1)]));
    }
}
