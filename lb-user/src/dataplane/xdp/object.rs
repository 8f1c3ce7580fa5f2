//! The program's life in the kernel: loading, pinning, attaching, taking over from an earlier
//! daemon, and going away.

use std::{error::Error, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};

use super::{
    maps::{map_data, shape},
    pins::{Pins, absent_is_fine},
    probes,
};
use crate::dataplane::{Attachment, DataPlaneError};

/// The compiled program, with every map definition.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LBD_EBPF_OBJECT"));

/// Every map that outlives the daemon, as pinned. Probes do not.
pub const MAPS: [&str; 30] = [
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
    "devices",
    "backend_stats",
    "reasons",
    "events",
];

/// An interface that runs the program.
struct Attached {
    attachment: Attachment,
    /// Its index: one of the same name that was made later has another.
    ifindex: u32,
    link: PinnedLink,
}

/// A loaded object with its links.
pub struct Object {
    ebpf: Ebpf,
    pins: Option<Pins>,
    links: Vec<Attached>,
    /// Interfaces where attaching failed; that is told once.
    refused: Vec<String>,
    /// Where the program runs on interfaces that come later.
    hook: Hook,
    /// Which of the two programs runs: the one for frames in several buffers where the kernel has it.
    program: &'static str,
    /// Why health checks cannot ask for the VIP on a real server, if they cannot.
    no_probes: Option<String>,
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
            (Ok((ebpf, program, no_probes)), pins) => Ok(Self {
                ebpf,
                pins,
                links: Vec::new(),
                refused: Vec::new(),
                hook: Hook::Native,
                program,
                no_probes,
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

    fn try_load(
        pins: Option<&Pins>,
    ) -> Result<(Ebpf, &'static str, Option<String>), DataPlaneError> {
        let mut loader = EbpfLoader::new();
        if let Some(pins) = pins {
            for name in MAPS {
                loader.map_pin_path(name, pins.path(name));
            }
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| refused(&e))?;
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
        let no_probes = probes::load(&mut ebpf).err();
        Ok((ebpf, program, no_probes))
    }

    /// Runs the program on every configured interface.
    pub fn attach(&mut self, interfaces: &[String], hook: Hook) -> Result<(), DataPlaneError> {
        self.hook = hook;
        for interface in interfaces {
            let link = self.attach_one(interface, hook)?;
            self.links.push(link);
        }
        self.drop_stale_links();
        if self.no_probes.is_none() {
            self.no_probes = self.attach_probes(interfaces).err();
        }
        if let Some(reason) = &self.no_probes {
            tracing::warn!(
                reason,
                "health checks ask the real servers' own addresses instead of the VIPs on them"
            );
        }
        Ok(())
    }

    fn attach_probes(&mut self, interfaces: &[String]) -> Result<(), String> {
        let mut interfaces = interfaces.iter();
        interfaces.try_for_each(|interface| probes::attach(&mut self.ebpf, interface))
    }

    /// See [`Xdp::run_probe`](super::Xdp::run_probe).
    pub fn run_probe(&mut self, outgoing: bool, frame: &[u8], mark: u32) -> io::Result<Vec<u8>> {
        probes::run(&mut self.ebpf, outgoing, frame, mark)
    }

    /// The programs of health checks run there too.
    fn follow_probes(&mut self, interface: &str) {
        if self.no_probes.is_none()
            && let Err(reason) = probes::attach(&mut self.ebpf, interface)
        {
            tracing::warn!(
                interface,
                reason,
                "health checks cannot ask for the VIPs on real servers there"
            );
        }
    }

    /// Why health checks cannot ask for the VIP on a real server, if they cannot.
    pub fn no_probes(&self) -> Option<&str> {
        self.no_probes.as_deref()
    }

    fn attach_one(&mut self, interface: &str, hook: Hook) -> Result<Attached, DataPlaneError> {
        let ifindex = nix::net::if_::if_nametoindex(interface)
            .map_err(|_| DataPlaneError::NoInterface(interface.to_owned()))?;
        let attached = |mode: &str, link: PinnedLink| Attached {
            attachment: attachment(interface, mode),
            ifindex,
            link,
        };
        let Some(pins) = &self.pins else {
            return Err(DataPlaneError::Load(
                "an object without pins is not attached".to_owned(),
            ));
        };
        for (mode, _) in hook.modes() {
            let path = pins.path(&link_name(mode, interface));
            if path.exists() {
                match take_over(named_program(&mut self.ebpf, self.program)?, &path) {
                    Ok(link) => {
                        tracing::info!(interface, mode, "took over the XDP link of an earlier lbd");
                        return Ok(attached(mode, link));
                    }
                    Err(error) => {
                        tracing::warn!(
                            interface,
                            error,
                            "cannot take over the XDP link of an earlier lbd"
                        );
                        let _ = std::fs::remove_file(&path);
                    }
                }
            }
        }
        let mut refusal = String::new();
        for &(mode, flag) in hook.modes() {
            match named_program(&mut self.ebpf, self.program)?.attach(interface, flag) {
                Ok(id) => {
                    if mode == "generic" && hook == Hook::Either {
                        tracing::warn!(
                            interface,
                            refusal,
                            "native XDP refused; using generic XDP, which is slower"
                        );
                    }
                    let path = pins.path(&link_name(mode, interface));
                    let link = named_program(&mut self.ebpf, self.program)?
                        .take_link(id)
                        .map_err(|e| refused(&e))?;
                    let link = FdLink::try_from(link)
                        .map_err(|e| map_error("use BPF links (Linux 5.9 or later is needed)", &e))?
                        .pin(&path)
                        .map_err(|e| map_error("pin the XDP link", &e))?;
                    return Ok(attached(mode, link));
                }
                Err(error) => refusal = self.explain(interface, &error)?,
            }
        }
        if hook != Hook::Native {
            return Err(DataPlaneError::Attach {
                interface: interface.to_owned(),
                reason: refusal,
            });
        }
        Err(DataPlaneError::NoNativeXdp {
            interface: interface.to_owned(),
            reason: refusal,
        })
    }

    /// The kernel's refusal in words, or an error that no other mode could cure.
    fn explain(
        &self,
        interface: &str,
        error: &aya::programs::ProgramError,
    ) -> Result<String, DataPlaneError> {
        if matches!(error, aya::programs::ProgramError::UnknownInterface { .. }) {
            return Err(DataPlaneError::NoInterface(interface.to_owned()));
        }
        match errno(error) {
            Some(libc::EPERM | libc::EACCES) => {
                Err(DataPlaneError::NoPermission("attach an XDP program"))
            }
            Some(libc::EBUSY | libc::EEXIST) => Err(DataPlaneError::Attach {
                interface: interface.to_owned(),
                reason: format!(
                    "another XDP program is attached; `ip link set dev {interface} xdp off` removes it, \
                     unless a BPF link holds it: then end its owner, or remove the link's pin \
                     (an lbd that died leaves `link-native-{interface}` in its pin_path)"
                ),
            }),
            _ => Ok(chain(error)),
        }
    }

    /// Runs the program on the present interfaces, given with their indexes, where it does not run: on
    /// those that were made again since.
    pub fn follow(&mut self, present: &[(String, u32)]) {
        let hook = self.hook;
        let runs = |attached: &Attached, (name, ifindex): &(String, u32)| {
            attached.attachment.interface == *name && attached.ifindex == *ifindex
        };
        let is_gone = |attached: &mut Attached| !present.iter().any(|p| runs(attached, p));
        for attached in self.links.extract_if(.., is_gone) {
            tracing::warn!(
                interface = attached.attachment.interface,
                "the interface is gone, and the XDP program with it"
            );
            // Else the pin would be taken for a link to take over.
            if let Err(error) = detach(attached) {
                tracing::warn!(%error, "cannot remove the pin of an interface that is gone");
            }
        }
        for wanted in present {
            if self.links.iter().any(|attached| runs(attached, wanted)) {
                continue;
            }
            let interface = &wanted.0;
            match self.attach_one(interface, hook) {
                Ok(attached) => {
                    tracing::info!(
                        interface,
                        "the XDP program runs on an interface that is new"
                    );
                    self.refused.retain(|name| name != interface);
                    self.follow_probes(interface);
                    self.links.push(attached);
                }
                Err(error) if !self.refused.contains(interface) => {
                    tracing::error!(%error, "trying again");
                    self.refused.push(interface.clone());
                }
                Err(_) => {}
            }
        }
    }

    /// Removes links of interfaces that are not configured any more.
    fn drop_stale_links(&self) {
        let Some(pins) = &self.pins else { return };
        for name in pins.names().iter().filter(|name| name.starts_with("link-")) {
            let live = self
                .links
                .iter()
                .any(|l| *name == link_name(&l.attachment.mode, &l.attachment.interface));
            if !live {
                let _ = std::fs::remove_file(pins.path(name));
            }
        }
    }

    /// Attached interfaces.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.links
            .iter()
            .map(|attached| attached.attachment.clone())
            .collect()
    }

    /// Indexes of the interfaces that run the program natively.
    pub fn native(&self) -> Vec<u32> {
        let native = self.links.iter().filter(|a| a.attachment.mode == "native");
        native.map(|attached| attached.ifindex).collect()
    }

    /// Takes a map out.
    pub fn take_map(&mut self, name: &str) -> Result<Map, DataPlaneError> {
        self.ebpf
            .take_map(name)
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

    /// Detaches from every interface and removes every pin.
    pub fn remove(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for attached in self.links.drain(..) {
            result = result.and(detach(attached));
        }
        result.and(self.pins.as_ref().map_or(Ok(()), Pins::remove_all))
    }
}

/// A pin that somebody removed by hand is no error.
fn detach(attached: Attached) -> io::Result<()> {
    let unpinned = attached.link.unpin().map(drop);
    unpinned.or_else(absent_is_fine)
}

/// Where in a packet's way the program may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In the driver.
    Native,
    /// In the kernel's common code, which is slower.
    Generic,
    /// In the driver if it can, else in the common code.
    Either,
}

impl Hook {
    /// In the order of preference.
    fn modes(self) -> &'static [(&'static str, XdpMode)] {
        match self {
            Hook::Native => &MODES[..1],
            Hook::Generic => &MODES[1..],
            Hook::Either => &MODES,
        }
    }
}

/// In the order of preference.
const MODES: [(&str, XdpMode); 2] = [("native", XdpMode::Driver), ("generic", XdpMode::Skb)];

fn link_name(mode: &str, interface: &str) -> String {
    // bpffs forbids dots in names, and interface names may have them.
    format!("link-{mode}-{}", interface.replace('.', "_"))
}

fn attachment(interface: &str, mode: &str) -> Attachment {
    Attachment {
        interface: interface.to_owned(),
        mode: mode.to_owned(),
    }
}

fn named_program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, DataPlaneError> {
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

/// Puts the new program behind the old link: no packet sees an interface without one.
fn take_over(program: &mut Xdp, path: &Path) -> Result<PinnedLink, String> {
    let old = PinnedLink::from_pin(path).map_err(|e| chain(&e))?;
    let link = XdpLink::try_from(FdLink::from(old)).map_err(|e| chain(&e))?;
    let id = program.attach_to_link(link).map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    // The pin is the old one; this handle keeps it company.
    drop(FdLink::try_from(link).map_err(|e| chain(&e))?);
    PinnedLink::from_pin(path).map_err(|e| chain(&e))
}

/// Whether a pinned map has another shape than the program expects.
fn misfit(name: &str, map: &Map) -> Option<String> {
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

fn refused(error: &(dyn Error + 'static)) -> DataPlaneError {
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
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
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
