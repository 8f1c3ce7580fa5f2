//! The sockets of all interfaces. They are opened, joined to groups and closed here and not in the thread that
//! uses them: some of that waits for locks of the kernel that others hold.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use super::socket::{Kind, VrrpSocket};
use crate::model::Instance;

/// Interface and what is spoken there: each has one socket.
pub type Place = (String, Kind);

/// A socket that the thread may use, with its place.
pub type Ready = (Place, Arc<VrrpSocket>);

/// All that are open.
#[derive(Default)]
pub struct Ports {
    open: BTreeMap<Place, Port>,
    /// Those that the thread may still have, of interfaces that were made anew.
    closing: Vec<Arc<VrrpSocket>>,
    /// Instances without a socket, that this was told of.
    deaf: HashSet<String>,
}

struct Port {
    socket: Arc<VrrpSocket>,
    groups: Vec<IpAddr>,
}

impl Ports {
    /// Opens what an instance needs on its interface of this index, as far as it is not open yet. An error comes
    /// with whether it is the first in a row.
    pub fn prepare(&mut self, instance: &Instance, ifindex: u32) -> Result<(), (io::Error, bool)> {
        match self.open(instance, ifindex) {
            Ok(()) => {
                self.deaf.remove(&instance.name);
                Ok(())
            }
            Err(error) => Err((error, self.deaf.insert(instance.name.clone()))),
        }
    }

    fn open(&mut self, instance: &Instance, ifindex: u32) -> io::Result<()> {
        // The thread has others by now.
        self.closing.retain(|socket| Arc::strong_count(socket) > 1);
        let place = place(instance);
        let is_there = |port: &Port| port.socket.ifindex() == ifindex;
        if !self.open.get(&place).is_some_and(is_there) {
            let socket = Arc::new(VrrpSocket::open(&place.0, ifindex, place.1)?);
            let port = Port {
                socket,
                groups: Vec::new(),
            };
            let old = self.open.insert(place.clone(), port);
            self.closing.extend(old.map(|old| old.socket));
        }
        let Some(port) = self.open.get_mut(&place) else {
            return Ok(());
        };
        // Peers are spoken to one by one.
        if !instance.peers.is_empty() {
            return Ok(());
        }
        if instance.network.virtual_mac.is_some() {
            port.socket.open_frames()?;
        }
        if !port.groups.contains(&instance.group) {
            port.socket.join(instance.group)?;
            port.groups.push(instance.group);
        }
        Ok(())
    }

    /// That of an instance, if it is open.
    pub fn of(&self, instance: &Instance) -> Option<Ready> {
        let place = place(instance);
        let socket = Arc::clone(&self.open.get(&place)?.socket);
        Some((place, socket))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Ready> {
        let all = self.open.iter();
        all.map(|(place, port)| (place.clone(), Arc::clone(&port.socket)))
            .collect()
    }

    /// Closes sockets and leaves groups that none of these instances needs. The thread has let go of them.
    pub fn keep_only(&mut self, instances: &[Instance]) {
        self.closing.clear();
        self.deaf
            .retain(|name| instances.iter().any(|i| i.name == *name));
        self.open.retain(|place_of, port| {
            let here = |instance: &&Instance| place(instance) == *place_of;
            port.groups.retain(|group| {
                let needs = |i: &Instance| i.peers.is_empty() && i.group == *group;
                let is_needed = instances.iter().filter(here).any(needs);
                if !is_needed {
                    port.socket.leave(*group);
                }
                is_needed
            });
            instances.iter().any(|instance| here(&instance))
        });
    }
}

/// Where an instance hears and speaks.
pub fn place(instance: &Instance) -> Place {
    (instance.interface.clone(), Kind::of(instance))
}
