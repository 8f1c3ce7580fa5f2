//! From what IPVS holds to what it should hold: the commands in between. Pure.
//!
//! New real servers come before others change or go, so that a service is never without any.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    codec::{
        Command, Destination, DestinationEntry, Key, Service, ServiceEntry, SyncDaemon, SyncState,
        flags,
    },
    desired::Wanted,
    kernel::Table,
};

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In this order.
    pub commands: Vec<Command>,
    /// Afterwards: takes out who stayed for connections that have ended.
    pub tidying: Vec<Command>,
    /// Whether real servers are taken out and put back at once, which their connections must survive.
    pub reorders: bool,
}

impl Steps {
    /// Adds a real server. The kernel remembers the latest weight above 0 of one that is drained, and `mh`
    /// goes by that.
    fn add(&mut self, wish: &Wanted, index: usize) {
        let (key, server) = (wish.service.key, wish.servers[index]);
        match wish.last_weights.get(index) {
            Some(&weight) if server.weight == 0 && weight > 0 => {
                let earlier = Destination { weight, ..server };
                self.commands.push(Command::NewDestination(key, earlier));
                self.commands.push(Command::SetDestination(key, server));
            }
            _ => self.commands.push(Command::NewDestination(key, server)),
        }
    }
}

/// The way from `held` to `wanted`. Services that are not wanted are removed if `is_ours` says so.
pub fn steps(wanted: &[Wanted], held: &Table, is_ours: impl Fn(&Key) -> bool) -> Steps {
    let mut steps = Steps::default();
    let by_key: HashMap<Key, &(ServiceEntry, Vec<DestinationEntry>)> =
        held.iter().map(|pair| (pair.0.service.key, pair)).collect();
    for wish in wanted {
        match by_key.get(&wish.service.key) {
            Some((entry, servers)) => existing(wish, entry, servers, &mut steps),
            None => {
                steps
                    .commands
                    .push(Command::NewService(wish.service.clone()));
                for index in 0..wish.servers.len() {
                    steps.add(wish, index);
                }
            }
        }
    }
    let kept: HashSet<Key> = wanted.iter().map(|wish| wish.service.key).collect();
    let gone = held
        .iter()
        .map(|(entry, _)| entry.service.key)
        .filter(|key| !kept.contains(key) && is_ours(key));
    steps.commands.extend(gone.map(Command::DeleteService));
    steps
}

/// The way to the sync daemon that is wanted. With none, those in the kernel are stopped that are
/// ours. One whose interface was made again hears and says nothing: `is_deaf`.
pub fn sync_steps(
    wanted: Option<&SyncDaemon>,
    held: &[SyncDaemon],
    ours: &BTreeSet<SyncState>,
    is_deaf: bool,
) -> Vec<Command> {
    let right =
        |held: &SyncDaemon| !is_deaf && wanted.is_some_and(|wanted| same_daemon(wanted, held));
    let mut commands: Vec<Command> = held
        .iter()
        .filter(|held| !right(held) && (wanted.is_some() || ours.contains(&held.state)))
        .map(|held| Command::DeleteDaemon(held.state))
        .collect();
    if let Some(wanted) = wanted
        && !held.iter().any(right)
    {
        commands.push(Command::NewDaemon(wanted.clone()));
    }
    commands
}

/// What is not demanded may be anything.
fn same_daemon(wanted: &SyncDaemon, held: &SyncDaemon) -> bool {
    let SyncDaemon {
        state,
        interface,
        id,
        length,
        group,
        port,
        ttl,
    } = wanted;
    (*state, interface, *id) == (held.state, &held.interface, held.id)
        && (length.is_none() || *length == held.length)
        && (group.is_none() || *group == held.group)
        && (port.is_none() || *port == held.port)
        && (ttl.is_none() || *ttl == held.ttl)
}

fn existing(wish: &Wanted, entry: &ServiceEntry, held: &[DestinationEntry], steps: &mut Steps) {
    let key = wish.service.key;
    if !same_service(&wish.service, &entry.service) {
        steps
            .commands
            .push(Command::SetService(wish.service.clone()));
    }
    let is = |a: &Destination, b: &Destination| (a.address, a.port) == (b.address, b.port);
    let find = |list: &[Destination], server: &Destination| list.iter().any(|s| is(s, server));
    let lingers = |entry: &DestinationEntry| {
        entry.active + entry.inactive > 0 && find(&wish.lingering, &entry.destination)
    };
    // Those in the kernel that stay, oldest first: the order in which they were added.
    let staying: Vec<&DestinationEntry> = held
        .iter()
        .rev()
        .filter(|entry| find(&wish.servers, &entry.destination))
        .collect();
    // The first of the file that stand as they should; all behind them are added, again if need be.
    let in_place = match wish.ordered {
        true => wish
            .servers
            .iter()
            .zip(&staying)
            .take_while(|(server, entry)| is(server, &entry.destination))
            .count(),
        false => wish.servers.len(),
    };
    for (index, server) in wish.servers.iter().enumerate() {
        let present = staying.iter().find(|entry| is(server, &entry.destination));
        match present {
            None => steps.add(wish, index),
            Some(_) if index >= in_place => {
                steps.reorders = true;
                steps
                    .commands
                    .push(Command::DeleteDestination(key, *server));
                steps.add(wish, index);
            }
            Some(entry) if entry.destination != *server => {
                steps.commands.push(Command::SetDestination(key, *server));
            }
            Some(_) => {}
        }
    }
    for entry in held {
        let server = entry.destination;
        if find(&wish.servers, &server) {
            continue;
        }
        if find(&wish.lingering, &server) && !lingers(entry) {
            steps.tidying.push(Command::DeleteDestination(key, server));
        } else if !lingers(entry) {
            steps.commands.push(Command::DeleteDestination(key, server));
        } else if server.weight != 0 {
            let quiet = Destination {
                weight: 0,
                ..server
            };
            steps.commands.push(Command::SetDestination(key, quiet));
        }
    }
}

fn same_service(wish: &Service, held: &Service) -> bool {
    let own = |service: &Service| Service {
        flags: service.flags & !flags::HASHED,
        ..service.clone()
    };
    own(wish) == own(held)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::dataplane::ipvs::codec::{Forward, Stats, Wrapping};

    fn key(port: u16) -> Key {
        Key::Address(6, IpAddr::from([10, 1, 15, 50]), port)
    }

    fn server(last: u8, weight: u32) -> Destination {
        Destination {
            address: IpAddr::from([10, 1, 15, last]),
            port: 80,
            forward: Forward::Route,
            wrapping: Wrapping::default(),
            weight,
            upper: 0,
            lower: 0,
        }
    }

    fn wish(port: u16, servers: &[Destination], ordered: bool) -> Wanted {
        Wanted {
            service: Service {
                scheduler: "wrr".to_owned(),
                ..Service::bare(key(port))
            },
            servers: servers.to_vec(),
            last_weights: servers.iter().map(|server| server.weight).collect(),
            lingering: Vec::new(),
            ordered,
        }
    }

    /// A kernel without packets: what it would hold after commands.
    fn perform(table: &mut Table, commands: &[Command]) {
        for command in commands {
            let place = |table: &Table, key: &Key| {
                let at = table.iter().position(|(e, _)| e.service.key == *key);
                at.expect("the service exists")
            };
            let same = |server: &Destination| {
                let server = *server;
                move |entry: &DestinationEntry| {
                    (entry.destination.address, entry.destination.port)
                        == (server.address, server.port)
                }
            };
            match command {
                Command::NewService(service) => {
                    let service = Service {
                        flags: service.flags | flags::HASHED,
                        ..service.clone()
                    };
                    let stats = Stats::default();
                    table.push((ServiceEntry { service, stats }, Vec::new()));
                }
                Command::SetService(service) => {
                    let at = place(table, &service.key);
                    table[at].0.service = service.clone();
                }
                Command::DeleteService(key) => {
                    let at = place(table, key);
                    table.remove(at);
                }
                Command::NewDestination(key, server) => {
                    let at = place(table, key);
                    assert!(!table[at].1.iter().any(same(server)), "{server:?} twice");
                    table[at].1.insert(0, entry(*server, 0));
                }
                Command::SetDestination(key, server) => {
                    let at = place(table, key);
                    let found = table[at].1.iter().position(same(server)).unwrap();
                    table[at].1[found].destination = *server;
                }
                Command::DeleteDestination(key, server) => {
                    let at = place(table, key);
                    let found = table[at].1.iter().position(same(server)).unwrap();
                    table[at].1.remove(found);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn entry(destination: Destination, active: u32) -> DestinationEntry {
        DestinationEntry {
            destination,
            active,
            inactive: 0,
            persistent: 0,
            stats: Stats::default(),
        }
    }

    /// Makes a kernel hold what is wanted.
    fn bring(table: &mut Table, wanted: &[Wanted]) {
        let commands = steps(wanted, table, all_ours).commands;
        perform(table, &commands);
    }

    fn all_ours(_: &Key) -> bool {
        true
    }

    fn names(table: &Table, index: usize) -> Vec<(String, u32)> {
        let of = |e: &DestinationEntry| (e.destination.address.to_string(), e.destination.weight);
        table[index].1.iter().map(of).collect()
    }

    #[test]
    fn a_second_time_there_is_nothing_to_do() {
        let wanted = [
            wish(80, &[server(45, 1), server(46, 3)], false),
            wish(81, &[server(45, 1)], true),
        ];
        let mut table = Table::new();
        let first = steps(&wanted, &table, all_ours);
        assert_eq!(first.commands.len(), 5);
        perform(&mut table, &first.commands);
        assert_eq!(steps(&wanted, &table, all_ours), Steps::default());
    }

    #[test]
    fn servers_come_change_and_go() {
        let mut table = Table::new();
        let before = [wish(80, &[server(45, 1), server(46, 3)], false)];
        bring(&mut table, &before);
        let after = [wish(80, &[server(45, 0), server(47, 2)], false)];
        let next = steps(&after, &table, all_ours);
        assert_eq!(
            next.commands,
            [
                Command::SetDestination(key(80), server(45, 0)),
                Command::NewDestination(key(80), server(47, 2)),
                Command::DeleteDestination(key(80), server(46, 3)),
            ]
        );
        perform(&mut table, &next.commands);
        assert_eq!(steps(&after, &table, all_ours), Steps::default());
    }

    /// Added with the weight that the kernel is to remember, and drained at once.
    #[test]
    fn a_drained_server_is_added_with_its_last_weight() {
        let mut wish = wish(80, &[server(45, 3), server(46, 0), server(47, 0)], true);
        wish.last_weights = vec![3, 5, 0];
        let commands = steps(&[wish], &Table::new(), all_ours).commands;
        assert_eq!(
            commands[2..],
            [
                Command::NewDestination(key(80), server(46, 5)),
                Command::SetDestination(key(80), server(46, 0)),
                Command::NewDestination(key(80), server(47, 0)),
            ]
        );
    }

    #[test]
    fn services_of_others_stay() {
        let mut table = Table::new();
        let both = [
            wish(80, &[server(45, 1)], false),
            wish(99, &[server(46, 1)], false),
        ];
        bring(&mut table, &both);
        let ours = |which: &Key| *which == key(80);
        let none = steps(&[], &table, ours);
        assert_eq!(none.commands, [Command::DeleteService(key(80))]);
        assert_eq!(steps(&both[..1], &table, ours), Steps::default());
    }

    /// Where the order counts, one that comes back gets its old place: the last of the file is the
    /// kernel's first.
    #[test]
    fn a_server_that_returns_stands_where_it_stood() {
        let all = [server(45, 1), server(46, 1), server(47, 1)];
        for missing in 0..3 {
            let mut table = Table::new();
            bring(&mut table, &[wish(80, &all, true)]);
            let order = names(&table, 0);
            let mut fewer = all.to_vec();
            fewer.remove(missing);
            bring(&mut table, &[wish(80, &fewer, true)]);
            let back = steps(&[wish(80, &all, true)], &table, all_ours);
            assert_eq!(back.reorders, missing != 2, "{missing}");
            perform(&mut table, &back.commands);
            assert_eq!(names(&table, 0), order, "{missing}");
            let again = steps(&[wish(80, &all, true)], &table, all_ours);
            assert_eq!(again, Steps::default());
        }
    }

    #[test]
    fn a_sorry_server_stays_for_its_readers() {
        let sorry = server(1, 1);
        let mut wanted = wish(80, &[server(45, 1)], false);
        wanted.lingering = vec![Destination { weight: 0, ..sorry }];
        let held = |active| {
            let service = ServiceEntry {
                service: wanted.service.clone(),
                stats: Stats::default(),
            };
            vec![(service, vec![entry(server(45, 1), 0), entry(sorry, active)])]
        };
        let list = std::slice::from_ref(&wanted);
        let with_readers = steps(list, &held(2), all_ours);
        assert_eq!(
            with_readers.commands,
            [Command::SetDestination(
                key(80),
                Destination { weight: 0, ..sorry }
            )]
        );
        let without = steps(list, &held(0), all_ours);
        assert!(without.commands.is_empty());
        assert_eq!(
            without.tidying,
            [Command::DeleteDestination(key(80), sorry)]
        );
    }

    #[test]
    fn one_sync_daemon_at_a_time() {
        let daemon = |state, port| SyncDaemon {
            interface: "eth1".to_owned(),
            id: 7,
            port,
            ..SyncDaemon::bare(state)
        };
        use SyncState::{Backup, Master};
        let running = |state| daemon(state, Some(8848));
        let wanted = daemon(Master, None);
        let none = BTreeSet::new();
        let to = |held: &[SyncDaemon]| sync_steps(Some(&wanted), held, &none, false);
        assert_eq!(to(&[]), [Command::NewDaemon(wanted.clone())]);
        assert!(to(&[running(Master)]).is_empty());
        assert_eq!(
            sync_steps(Some(&wanted), &[running(Master)], &[Master].into(), true),
            [
                Command::DeleteDaemon(Master),
                Command::NewDaemon(wanted.clone())
            ]
        );
        assert_eq!(
            to(&[running(Backup)]),
            [
                Command::DeleteDaemon(Backup),
                Command::NewDaemon(wanted.clone())
            ]
        );
        let other_port = daemon(Master, Some(9));
        assert_eq!(
            sync_steps(
                Some(&other_port),
                &[running(Master)],
                &[Master].into(),
                false
            ),
            [
                Command::DeleteDaemon(Master),
                Command::NewDaemon(other_port.clone())
            ]
        );
        // Without one of our own, those of others run on.
        let both = [running(Master), running(Backup)];
        let ends = |ours: &[SyncState]| {
            let ours = ours.iter().copied().collect();
            sync_steps(None, &both, &ours, false)
        };
        let stops = Command::DeleteDaemon;
        assert_eq!(ends(&[]), []);
        assert_eq!(ends(&[Backup]), [stops(Backup)]);
        assert_eq!(ends(&[Master]), [stops(Master)]);
        assert_eq!(ends(&[Master, Backup]), [stops(Master), stops(Backup)]);
    }

    #[test]
    fn what_somebody_else_changed_is_changed_back() {
        let wanted = [wish(80, &[server(45, 1)], false)];
        let mut table = Table::new();
        bring(&mut table, &wanted);
        let good = table.clone();
        table[0].0.service.scheduler = "rr".to_owned();
        table[0].1[0].destination.forward = Forward::Tunnel;
        table[0].1.push(entry(server(99, 1), 0));
        let repairs = steps(&wanted, &table, all_ours).commands;
        assert_eq!(repairs.len(), 3);
        perform(&mut table, &repairs);
        table[0].0.service.flags |= flags::HASHED;
        assert_eq!(table, good);
    }
}
