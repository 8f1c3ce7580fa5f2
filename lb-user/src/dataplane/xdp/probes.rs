//! The classifiers that let a health check ask for the VIP on one real server, and their map of targets.
//! `lb_common::probe` says how it works.
//!
//! They are attached to the same interfaces as the XDP program, by TCX links (Linux 6.6) or as filters
//! of the `clsact` queueing discipline. Neither outlives the daemon on purpose: without it nobody asks.

use std::{collections::HashMap, io, sync::atomic::Ordering};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun, TestRunOptions,
        tc::{self, NlOptions, TcAttachOptions, TcError},
    },
    util::KernelVersion,
};
use lb_common::{Address, probe::ProbeTarget};

use super::{mapped::MappedArray, object::chain};
use crate::model::{ProbePath, address::wire};

/// A classifier, and where it runs.
pub type Classifier = (&'static str, TcAttachType);

/// Those of health checks.
pub const PROGRAMS: [Classifier; 2] = [
    ("probe_out", TcAttachType::Egress),
    ("probe_in", TcAttachType::Ingress),
];

/// The map of targets.
pub struct Probes {
    targets: MappedArray<ProbeTarget>,
    /// What it holds.
    held: HashMap<u16, ProbePath>,
}

impl Probes {
    /// Forgets what an earlier daemon asked for.
    pub fn new(targets: MappedArray<ProbeTarget>) -> Self {
        for index in 0..targets.len() {
            write(&targets, index, &ProbeTarget::default());
        }
        Self {
            targets,
            held: HashMap::new(),
        }
    }

    /// Makes the map hold these paths and no others.
    pub fn follow(&mut self, paths: &[ProbePath]) {
        let wanted: HashMap<u16, ProbePath> =
            paths.iter().map(|path| (path.index, *path)).collect();
        for index in self.held.keys().filter(|index| !wanted.contains_key(index)) {
            write(&self.targets, usize::from(*index), &ProbeTarget::default());
        }
        for (index, path) in &wanted {
            if self.held.get(index) != Some(path) {
                let target = ProbeTarget {
                    vip: wire(path.vip),
                    host: wire(path.host),
                    tunnel: u64::from(path.tunnel.is_some()),
                };
                write(&self.targets, usize::from(*index), &target);
            }
        }
        self.held = wanted;
    }

    /// The paths, by index.
    pub fn paths(&self) -> impl Iterator<Item = &ProbePath> {
        self.held.values()
    }
}

/// A packet that meets a half-written target finds another host than its own there and passes as it is:
/// the host is cleared first and comes last.
fn write(targets: &MappedArray<ProbeTarget>, index: usize, target: &ProbeTarget) {
    let word =
        |offset: usize, word: u64| targets.word(index, offset).store(word, Ordering::Release);
    let address = |offset: usize, address: Address| {
        word(offset, address.0[0]);
        word(offset + 8, address.0[1]);
    };
    address(std::mem::offset_of!(ProbeTarget, host), Address::default());
    address(std::mem::offset_of!(ProbeTarget, vip), target.vip);
    word(std::mem::offset_of!(ProbeTarget, tunnel), target.tunnel);
    address(std::mem::offset_of!(ProbeTarget, host), target.host);
}

/// Loads classifiers.
pub fn load(ebpf: &mut Ebpf, programs: &[Classifier]) -> Result<(), String> {
    for (name, _) in programs {
        classifier(ebpf, name)?.load().map_err(|e| chain(&e))?;
    }
    Ok(())
}

/// Attaches classifiers to an interface. What an earlier daemon left there goes first.
pub fn attach(ebpf: &mut Ebpf, interface: &str, programs: &[Classifier]) -> Result<(), String> {
    // As aya decides.
    let by_filter = KernelVersion::current().is_ok_and(|now| now < KernelVersion::new(6, 6, 0));
    if by_filter {
        match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            // It outlives a daemon.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(format!("{interface}: no clsact: {}", chain(&error))),
        }
    }
    for &(name, at) in programs {
        if by_filter {
            let _ = tc::qdisc_detach_program(interface, at, name);
        }
        // First in line: another program's last word must not hide a probe's packets from us.
        let options = if by_filter {
            TcAttachOptions::Netlink(NlOptions {
                priority: 1,
                ..NlOptions::default()
            })
        } else {
            TcAttachOptions::TcxOrder(LinkOrder::first())
        };
        classifier(ebpf, name)?
            .attach_with_options(interface, at, options)
            .map_err(|e| format!("{interface}: {}", chain(&e)))?;
    }
    Ok(())
}

/// Runs one of them on a frame.
pub fn run(ebpf: &mut Ebpf, outgoing: bool, frame: &[u8], mark: u32) -> io::Result<Vec<u8>> {
    let [(out, _), (r#in, _)] = PROGRAMS;
    let name = if outgoing { out } else { r#in };
    // struct __sk_buff begins with len, pkt_type, mark.
    let context: Vec<u8> = [0, 0, mark].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let mut after = vec![0xa5; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut after),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let program = classifier(ebpf, name).map_err(io::Error::other)?;
    let result = program.test_run(options).map_err(io::Error::other)?;
    after.truncate(result.data_size_out as usize);
    Ok(after)
}

fn classifier<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut SchedClassifier, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the object has no classifier `{name}`"))
}
