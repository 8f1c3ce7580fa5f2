//! IPVS beside an XDP program that forwards: it takes what that leaves, for the real server that it chose. `slow` says
//! which services that takes.

pub use super::slow::servers;
use super::{
    Ipvs,
    kernel::{KernelError, Table},
    slow::{MAX_SERVERS, SlowServer},
};
use crate::dataplane::{DataPlaneError, Plan};

/// Every so many looks all is looked at, settings too; otherwise what has traffic, and which services there are.
const WHOLE_TABLE: u32 = 10;

impl Ipvs {
    /// Why these real servers cannot have a slow path.
    pub fn slow_obstacle(servers: &[SlowServer]) -> Option<String> {
        let many = servers.len();
        (many > MAX_SERVERS)
            .then(|| format!("there are {many} real servers, more than {MAX_SERVERS}"))
    }

    /// Ids of the program whose packets have no service any more when these are the real servers.
    pub fn slow_outdated(&self, servers: &[SlowServer]) -> Vec<u16> {
        self.slow.outdated(servers)
    }

    /// Whether these are the real servers already.
    pub fn has_slow_path_for(&self, servers: &[SlowServer]) -> bool {
        self.slow.outdated(servers).is_empty() && self.slow.marks().count() == servers.len()
    }

    /// Makes IPVS hold a service for each of these real servers, and no others.
    pub fn follow_slow_path(&mut self, servers: &[SlowServer]) -> Result<(), DataPlaneError> {
        self.slow.follow(servers);
        self.hold_slow_path()
    }

    /// Looks after the services: to be called every second. What others changed is changed back.
    pub fn tend_slow_path(&mut self) -> Result<(), DataPlaneError> {
        self.looks = self.looks.wrapping_add(1);
        let before = self.held.clone();
        self.held = self.read_table()?;
        if self.held != before || self.is_whole_look() {
            // What others changed is told as theirs, before services of ours change.
            self.amend(&Plan::default())?;
        }
        match self.slow.renew(&self.held, self.epoch.elapsed()) {
            true => self.amend(&Plan::default()).map(drop),
            false => Ok(()),
        }
    }

    fn hold_slow_path(&mut self) -> Result<(), DataPlaneError> {
        self.bring_about(&Plan::default()).map(drop)
    }

    /// Whether there are services of the slow path.
    pub fn has_slow_path(&self) -> bool {
        !self.slow.is_empty()
    }

    /// The mark for packets of each real server, by the program's id.
    pub fn slow_marks(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        self.slow.marks()
    }

    const fn is_whole_look(&self) -> bool {
        self.looks.is_multiple_of(WHOLE_TABLE)
    }

    /// What IPVS holds. With a slow path alone most of it stands still.
    pub(super) fn read_table(&mut self) -> Result<Table, KernelError> {
        match self.slow.is_open() && !self.is_whole_look() {
            true => self.kernel.table_since(std::mem::take(&mut self.held)),
            false => self.kernel.table(),
        }
    }
}
