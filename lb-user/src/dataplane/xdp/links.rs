//! The links that make the program run on interfaces: made, pinned, taken over from an earlier daemon,
//! followed while interfaces come and go, and undone.

use std::{io, path::Path};

use aya::programs::{
    Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{
    object::{Object, chain, errno, map_error, named_program, refused},
    pins::{Pins, absent_is_fine},
    probes, slow,
    syscall::LinkHandle,
};
use crate::dataplane::{Attachment, DataPlaneError};

/// An interface that runs the program.
pub struct Attached {
    attachment: Attachment,
    /// Its index: one of the same name that was made later has another.
    ifindex: u32,
    link: PinnedLink,
    /// The same link, for questions about it.
    handle: LinkHandle,
}

impl Object {
    /// Runs the program on every configured interface.
    pub fn attach(&mut self, interfaces: &[String], hook: Hook) -> Result<(), DataPlaneError> {
        self.hook = hook;
        for interface in interfaces {
            let link = self.attach_one(interface, hook)?;
            self.links.push(link);
        }
        self.drop_stale_links();
        let probes = interfaces
            .iter()
            .filter_map(|interface| self.attach_classifiers(interface));
        let refusal = probes.reduce(|first, _| first);
        self.no_probes = self.no_probes.take().or(refusal);
        if let Some(reason) = &self.no_probes {
            tracing::warn!(
                reason,
                "health checks ask the real servers' own addresses instead of the VIPs on them"
            );
        }
        Ok(())
    }

    /// They stay on an interface for as long as that is there, whatever becomes of the program. Returns why health checks
    /// cannot ask for the VIPs there, if those may elsewhere.
    fn attach_classifiers(&mut self, interface: &str) -> Option<String> {
        let ifindex = nix::net::if_::if_nametoindex(interface).unwrap_or_default();
        if self.probed.contains(&ifindex) {
            return None;
        }
        // One attempt: what is refused would be refused every second.
        self.probed.push(ifindex);
        if self.no_slow_path.is_none() {
            self.no_slow_path = probes::attach(&mut self.ebpf, interface, &slow::PROGRAMS).err();
        }
        match self.no_probes {
            None => probes::attach(&mut self.ebpf, interface, &probes::PROGRAMS).err(),
            Some(_) => None,
        }
    }

    /// The programs of health checks, and that of the slow path, run there too.
    pub fn follow_classifiers(&mut self, interface: &str) {
        if let Some(reason) = self.attach_classifiers(interface) {
            tracing::warn!(
                interface,
                reason,
                "health checks cannot ask for the VIPs on real servers there"
            );
        }
    }

    fn attach_one(&mut self, interface: &str, hook: Hook) -> Result<Attached, DataPlaneError> {
        let ifindex = nix::net::if_::if_nametoindex(interface)
            .map_err(|_| DataPlaneError::NoInterface(interface.to_owned()))?;
        let Some(pins) = &self.pins else {
            return Err(DataPlaneError::Load(
                "an object without pins is not attached".to_owned(),
            ));
        };
        let attached = |mode: &str, link: PinnedLink| {
            let handle = LinkHandle::of_pin(&pins.path(&link_name(mode, interface)))
                .map_err(|e| map_error("open the pin of the XDP link", &e))?;
            Ok(Attached {
                attachment: attachment(interface, mode),
                ifindex,
                link,
                handle,
            })
        };
        for (mode, _) in hook.modes() {
            let path = pins.path(&link_name(mode, interface));
            if path.exists() {
                match take_over(named_program(&mut self.ebpf, self.program)?, &path) {
                    Ok(link) => {
                        tracing::info!(interface, mode, "took over the XDP link of an earlier lbd");
                        return attached(mode, link);
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
                    return attached(mode, link);
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
        self.refused
            .keep(|interface| present.iter().any(|(name, _)| name == interface));
        for attached in self.links.extract_if(.., is_gone) {
            self.probed.retain(|ifindex| *ifindex != attached.ifindex);
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
                    tracing::info!(interface, "the XDP program runs on the interface now");
                    self.refused.clear(interface);
                    self.follow_classifiers(interface);
                    self.links.push(attached);
                }
                Err(error) => {
                    if self.refused.note(interface, error.to_string()) {
                        tracing::error!(%error, "trying again");
                    }
                }
            }
        }
    }

    /// Forgets links that somebody took off interfaces which are still there. Returns their names.
    pub fn take_lost(&mut self) -> Vec<String> {
        let is_lost = |attached: &mut Attached| {
            // A link that cannot be asked about is not known to be lost.
            attached.handle.is_attached().is_ok_and(|runs| !runs)
                && nix::net::if_::if_nametoindex(attached.attachment.interface.as_str())
                    .is_ok_and(|index| index == attached.ifindex)
        };
        let lost: Vec<Attached> = self.links.extract_if(.., is_lost).collect();
        let names = lost.iter().map(|lost| lost.attachment.interface.clone());
        let names = names.collect();
        for attached in lost {
            // Else the pin would be taken for a link to take over.
            if let Err(error) = detach(attached) {
                tracing::warn!(%error, "cannot remove the pin of a link that somebody detached");
            }
        }
        names
    }

    /// Why the last attempt to attach was refused on an interface that is there, if it was.
    pub fn refusal(&self) -> Option<&str> {
        self.refused.first()
    }

    /// Takes the program off every interface, and keeps it loaded with its maps.
    pub fn release(&mut self) -> io::Result<()> {
        self.refused.clear_all();
        let mut result = Ok(());
        for attached in self.links.drain(..) {
            // One that somebody detached before is off already.
            let _ = attached.handle.detach();
            result = result.and(detach(attached));
        }
        result
    }

    /// Runs the program on all of the present interfaces, or on none. There must be one.
    pub fn attach_again(&mut self, present: &[(String, u32)]) -> Result<(), DataPlaneError> {
        if present.is_empty() {
            let which = "every one that is configured".to_owned();
            return Err(DataPlaneError::NoInterface(which));
        }
        for (interface, _) in present {
            match self.attach_one(interface, self.hook) {
                Ok(attached) => self.links.push(attached),
                Err(error) => {
                    let _ = self.release();
                    return Err(error);
                }
            }
            self.follow_classifiers(interface);
        }
        self.refused.clear_all();
        Ok(())
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
