//! The program and its maps in the kernel: loading them, with what an earlier daemon left pinned.

use std::{collections::HashMap, error::Error, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{ProgramError, Xdp},
};

use super::{
    links::{Attached, Hook},
    maps::{map_data, shape},
    memory,
    pins::Pins,
    probes,
    refusals::Refusals,
    slow,
};
use crate::dataplane::DataPlaneError;

/// The compiled program, with every map definition.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LBD_EBPF_OBJECT"));

/// Every map that outlives the daemon, as pinned. Probes and ways of the slow path do not.
pub const MAPS: [&str; 31] = [
    "control",
    "services",
    "vips",
    "port_ranges",
    "details",
    "backends",
    "tunnels",
    "loads",
    "identities",
    "rings",
    "cursors",
    "flows",
    "wide_flows",
    "half_open_tcp",
    "half_open_udp",
    "wide_open_tcp",
    "wide_open_udp",
    "spill",
    "wide_spill",
    "fragments",
    "sticky",
    "sticky_new",
    "source_rates",
    "sources4",
    "sources6",
    "own_vlans",
    "vlan_sets",
    "devices",
    "backend_stats",
    "reasons",
    "events",
];

/// The loaded object, the maps whose addresses it has, the name of the program that runs, and why there are no probes.
type Loaded = (
    Ebpf,
    HashMap<&'static str, Map>,
    &'static str,
    [Option<String>; 2],
);

/// A loaded object with its links.
pub struct Object {
    pub(super) ebpf: Ebpf,
    /// Maps whose addresses the program has.
    memories: HashMap<&'static str, Map>,
    pub(super) pins: Option<Pins>,
    pub(super) links: Vec<Attached>,
    /// Interfaces where attaching failed, and why.
    pub(super) refused: Refusals,
    /// Where the program runs on interfaces that come later.
    pub(super) hook: Hook,
    /// Which of the two programs runs: the one for frames in several buffers where the kernel has it.
    pub(super) program: &'static str,
    /// Why health checks cannot ask for the VIP on a real server, if they cannot.
    pub(super) no_probes: Option<String>,
    /// Why packets cannot be handed to IPVS with their backend, if they cannot.
    pub(super) no_slow_path: Option<String>,
    /// Indexes of interfaces that have the programs of health checks.
    pub(super) probed: Vec<u32>,
}

impl Object {
    /// Loads the program; with `pins`, takes over maps that an earlier daemon left there.
    pub fn load(pins: Option<Pins>) -> Result<Self, DataPlaneError> {
        let inherited = pins.as_ref().is_some_and(|pins| !pins.names().is_empty());
        let mut loaded = Self::try_load(pins.as_ref());
        if let (Err(error), Some(pins), true) = (&loaded, &pins, inherited) {
            // Pinned maps of another version do not fit; a fresh start does.
            tracing::warn!(%error, "what an earlier lbd left pinned does not fit; starting afresh");
            pins.clear().map_err(|e| map_error("remove old pins", &e))?;
            loaded = Self::try_load(Some(pins));
        }
        match (loaded, pins) {
            (Ok((ebpf, memories, program, [no_probes, no_slow_path])), pins) => Ok(Self {
                ebpf,
                memories,
                pins,
                links: Vec::new(),
                refused: Refusals::default(),
                hook: Hook::Native,
                program,
                no_probes,
                no_slow_path,
                probed: Vec::new(),
            }),
            (Err(error), pins) => {
                // Maps that were pinned before the kernel refused the next one.
                if let Some(pins) = pins {
                    let _ = pins.remove_all();
                }
                Err(error)
            }
        }
    }

    fn try_load(pins: Option<&Pins>) -> Result<Loaded, DataPlaneError> {
        let memories = memory::open(pins)?;
        let mut loader = EbpfLoader::new();
        if let Some(pins) = pins {
            let own = |name: &&str| !memories.contains_key(name);
            for name in MAPS.into_iter().filter(own) {
                loader.map_pin_path(name, pins.path(name));
            }
        }
        let object = memory::addressed(OBJECT, &memories)?;
        let mut ebpf = loader.load(&object).map_err(|e| refused(&e))?;
        for (name, map) in ebpf.maps() {
            if let Some(problem) = misfit(name, map) {
                return Err(DataPlaneError::Load(problem));
            }
        }
        load(named_program(&mut ebpf, "clock")?).map_err(|e| refused(&e))?;
        // Kernels before 5.18 know frames in one buffer only; what they say of it is no use to anybody.
        let program = match load(named_program(&mut ebpf, "lbd")?) {
            Ok(()) => "lbd",
            Err(error) if errno(&error) == Some(libc::EPERM) => return Err(refused(&error)),
            Err(error) => {
                tracing::debug!(
                    error = chain(&error),
                    "no program for frames in several buffers"
                );
                load(named_program(&mut ebpf, "lbd_linear")?).map_err(|e| refused(&e))?;
                "lbd_linear"
            }
        };
        let lacks = [&probes::PROGRAMS[..], &slow::PROGRAMS]
            .map(|programs| probes::load(&mut ebpf, programs).err());
        Ok((ebpf, memories, program, lacks))
    }

    /// See [`Xdp::run_probe`](super::Xdp::run_probe).
    pub fn run_probe(&mut self, outgoing: bool, frame: &[u8], mark: u32) -> io::Result<Vec<u8>> {
        probes::run(&mut self.ebpf, outgoing, frame, mark)
    }

    /// Why health checks cannot ask for the VIP on a real server, if they cannot.
    pub fn no_probes(&self) -> Option<&str> {
        self.no_probes.as_deref()
    }

    /// Takes a map out.
    pub fn take_map(&mut self, name: &str) -> Result<Map, DataPlaneError> {
        self.memories
            .remove(name)
            .or_else(|| self.ebpf.take_map(name))
            .ok_or_else(|| DataPlaneError::Load(format!("the object has no map `{name}`")))
    }

    /// The loaded program, for test runs.
    pub fn program(&mut self) -> Result<&mut Xdp, DataPlaneError> {
        named_program(&mut self.ebpf, self.program)
    }

    /// The program that answers with its clock.
    pub fn clock(&mut self) -> Result<&mut Xdp, DataPlaneError> {
        named_program(&mut self.ebpf, "clock")
    }
}

/// One of its XDP programs.
pub fn named_program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, DataPlaneError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| DataPlaneError::Load(format!("the object has no XDP program `{name}`")))
}

/// Loads a program. The verifier gives up with EAGAIN when a signal waits for the thread; that says nothing
/// about the program.
fn load(program: &mut Xdp) -> Result<(), ProgramError> {
    /// More than this many signals while one program is verified are no accident.
    const TRIES: usize = 10;
    let mut result = program.load();
    for _ in 1..TRIES {
        match &result {
            Err(error) if errno(error) == Some(libc::EAGAIN) => result = program.load(),
            _ => break,
        }
    }
    result
}

/// Whether a pinned map has another shape than the program expects.
pub(super) fn misfit(name: &str, map: &Map) -> Option<String> {
    let (key, value, entries) = shape(name)?;
    let data: &MapData = map_data(map)?;
    let info = data.info().ok()?;
    let found = (info.key_size(), info.value_size(), info.max_entries());
    (found != (key, value, entries)).then(|| {
        format!(
            "map {name} has key, value and capacity {found:?} instead of {:?}",
            (key, value, entries)
        )
    })
}

/// Pins the program that the far end of a veth pair needs (see the lab) at `path`.
pub fn pin_pass(path: &Path) -> Result<(), DataPlaneError> {
    let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(|e| refused(&e))?;
    let pass = named_program(&mut ebpf, "pass")?;
    pass.load().map_err(|e| refused(&e))?;
    pass.pin(path)
        .map_err(|e| map_error("pin the pass program", &e))
}

/// Takes a pinned link off its interface, as `bpftool link detach` does (see the lab).
pub fn detach_pinned(path: &Path) -> io::Result<()> {
    super::syscall::LinkHandle::of_pin(path)?.detach()
}

/// The kernel's refusal to load.
pub fn refused(error: &(dyn Error + 'static)) -> DataPlaneError {
    match errno(error) {
        // EACCES is the verifier's, which says why in its log; EPERM is a missing capability.
        Some(libc::EPERM) => DataPlaneError::NoPermission("load BPF maps and programs"),
        _ => DataPlaneError::Load(chain(error)),
    }
}

/// A [`DataPlaneError::Map`].
pub fn map_error(what: &str, reason: &(dyn Error + 'static)) -> DataPlaneError {
    DataPlaneError::Map {
        what: what.to_owned(),
        reason: chain(reason),
    }
}

/// The error number at the bottom of an error's chain.
pub fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(number);
        }
        next = error.source();
    }
    None
}

/// An error with its sources, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        next = error.source();
    }
    text
}
