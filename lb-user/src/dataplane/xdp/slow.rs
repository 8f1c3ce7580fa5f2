//! The program's side of the slow path: which mark the classifier gives to packets of each backend.
//! `lb_common::slow` says how it works.

use std::{mem::offset_of, sync::atomic::Ordering};

use aya::programs::TcAttachType;
use lb_common::{control::Features, slow::SlowWay};

use super::{Xdp, backends::keys, mapped::MappedArray, probes::Classifier};
use crate::dataplane::BackendKey;

/// The classifier that gives packets their marks.
pub const PROGRAMS: [Classifier; 1] = [("slow_in", TcAttachType::Ingress)];

/// The map of marks.
pub struct SlowWays(MappedArray<SlowWay>);

impl SlowWays {
    /// Nobody has a mark yet.
    pub const fn new(map: MappedArray<SlowWay>) -> Self {
        Self(map)
    }

    fn set(&self, backend: u16, mark: u32) {
        let place = usize::from(backend) % self.0.len();
        self.0
            .half_word(place, offset_of!(SlowWay, mark))
            .store(mark, Ordering::Release);
    }

    /// A backend's.
    pub fn of(&self, backend: u16) -> SlowWay {
        self.0.load(usize::from(backend) % self.0.len())
    }

    fn packets(&self) -> u64 {
        let of = |place| {
            let word = self.0.word(place, offset_of!(SlowWay, packets));
            word.load(Ordering::Relaxed)
        };
        (0..self.0.len()).map(of).sum()
    }
}

impl Xdp {
    /// Why packets cannot be handed to IPVS with their backend, if they cannot.
    pub fn no_slow_path(&self) -> Option<&str> {
        self.object.no_slow_path.as_deref()
    }

    /// Begins to write down the backends of packets that pass, or ends it.
    pub fn open_slow_path(&mut self, open: bool) {
        self.control.set_feature(Features::SLOW_PATH, open);
    }

    /// The real servers of the plan with their ids.
    pub fn backend_ids(&self) -> Vec<(BackendKey, u16)> {
        let keys = self.plan.services.iter().flat_map(keys);
        keys.map(|key| (key, self.backend_id(&key))).collect()
    }

    /// Packets of a backend get this mark from now on; with 0 none.
    pub fn set_slow_mark(&mut self, backend: u16, mark: u32) {
        self.slow_ways.set(backend, mark);
    }

    /// No packet gets a mark any more.
    pub fn clear_slow_marks(&mut self) {
        (0..self.slow_ways.0.len()).for_each(|id| self.slow_ways.set(id as u16, 0));
    }

    /// How many packets were given a mark since the daemon's start.
    pub fn slow_packets(&self) -> u64 {
        self.slow_ways.packets()
    }

    /// Whether IPVS handles what the program leaves to the kernel of a backend's packets.
    pub(super) fn has_slow_way(&self, backend: u16) -> bool {
        self.has_slow_path() && self.slow_ways.of(backend).mark != 0
    }

    /// Whether packets that pass are handled by IPVS.
    pub fn has_slow_path(&self) -> bool {
        self.control.load().features & Features::SLOW_PATH != 0
    }
}
