//! What the XDP program did with packets, as a pcapng file with comments.
//!
//! The program writes to perf buffers, one for each CPU; a thread of its own turns what it finds there
//! into blocks of the file. Nothing of this exists while no capture runs.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{
    MapData,
    perf::{PerfEvent, PerfEventArray, PerfEventArrayBuffer},
};
use lb_common::{
    Address, Reason,
    capture::{Event, Filter},
    reason::Verdict,
};
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};
use tokio::sync::mpsc;

use super::{
    Xdp,
    dump::{host, service_name},
    questions::network,
};
use crate::{dataplane::CaptureQuery, model::address::from_wire};

/// Pages of each CPU's buffer, a power of two: 1 MiB, some hundred full packets.
const PAGES: usize = 256;
/// Chunks that may wait for a slow reader; then events are lost, and counted in the file.
const QUEUE: usize = 64;
/// How soon a capture without packets notices that nobody reads it any more.
const IDLE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// The kernel's limit for one perf sample, with room for its header.
const MAX_SNAP_LENGTH: u32 = 60_000;

/// The running capture.
#[derive(Default)]
pub struct Capture {
    running: Option<Arc<AtomicBool>>,
}

impl Capture {
    /// Whether one runs. One that has ended is forgotten; the flag says that this happened just now.
    pub fn check(&mut self) -> (bool, bool) {
        let alive = self
            .running
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Acquire));
        let ended = !alive && self.running.take().is_some();
        (alive, ended)
    }
}

impl Xdp {
    pub(super) fn start_capture(
        &mut self,
        query: &CaptureQuery,
    ) -> Result<mpsc::Receiver<Vec<u8>>, String> {
        if self.capture.check().0 {
            return Err("another capture is running; end it first".to_owned());
        }
        let filter = self.filter(query)?;
        let failed = |e: &dyn std::fmt::Display| format!("cannot open perf buffers: {e}");
        let cpus = aya::util::online_cpus().map_err(|(_, e)| failed(&e))?;
        let buffers = cpus
            .into_iter()
            .map(|cpu| self.events.open(cpu, Some(PAGES)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| failed(&e))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let running = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&running);
        let mut file = CaptureFile {
            names: self.names(),
            interfaces: HashMap::new(),
            left: query.count.unwrap_or(u64::MAX),
            lost: 0,
            offset: clock_offset(),
            snap_length: filter.snap_length,
        };
        let spawned = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || {
                if let Err(error) = file.write_all(buffers, &sender) {
                    tracing::warn!(%error, "the capture ends");
                }
                flag.store(false, Ordering::Release);
            });
        spawned.map_err(|e| format!("cannot start a thread: {e}"))?;
        self.capture.running = Some(running);
        self.control.set_capture(Some(&filter));
        Ok(receiver)
    }

    /// Turns the program's part off after a capture has ended.
    pub(super) fn end_capture(&mut self) {
        if self.capture.check().1 {
            self.control.set_capture(None);
        }
    }

    fn filter(&self, query: &CaptureQuery) -> Result<Filter, String> {
        let mut filter = Filter {
            snap_length: query.snap_length.clamp(14, MAX_SNAP_LENGTH),
            ..Filter::default()
        };
        if let Some(text) = &query.client {
            let (address, bits) = network(text)
                .ok_or_else(|| format!("`{text}` is no client: write an address or a network"))?;
            filter.client = address.network(bits);
            filter.client_mask = Address([u64::MAX; 2]).network(bits);
        }
        if let Some(name) = &query.service {
            let found = self
                .plan
                .services
                .iter()
                .find(|service| service.id.is_called(name));
            let service = found.ok_or_else(|| format!("there is no service {name}"))?;
            filter.service = self.service_ids.get(&service.id).unwrap_or_default().into();
        }
        if let Some(name) = &query.backend {
            let id = self
                .backend_ids
                .ever_given()
                .find(|id| {
                    let service = self.identities.backend(*id).map(|(service, ..)| service);
                    let fits =
                        filter.service == 0 || service.map(u32::from) == Some(filter.service);
                    fits && host(self, *id) == *name
                })
                .ok_or_else(|| format!("there is no real server {name}"))?;
            filter.backend = id.into();
        }
        if let Some(name) = &query.only {
            filter.outcomes = outcomes(name)?;
        }
        Ok(filter)
    }

    fn names(&self) -> Names {
        let services = self.service_ids.ever_given();
        let backends = self.backend_ids.ever_given();
        let index = |name: &String| {
            let ifindex = nix::net::if_::if_nametoindex(name.as_str()).ok()?;
            Some((ifindex, name.clone()))
        };
        Names {
            services: services
                .filter_map(|id| Some((id, service_name(self, id)?)))
                .collect(),
            backends: backends.map(|id| (id, host(self, id))).collect(),
            interfaces: self
                .object
                .attachments()
                .iter()
                .filter_map(|attachment| index(&attachment.interface))
                .collect(),
        }
    }
}

/// The outcomes that a word means, as bits.
fn outcomes(name: &str) -> Result<u64, String> {
    let of = |verdict: Verdict| {
        let fits = Reason::ALL
            .iter()
            .filter(|reason| reason.verdict() == verdict);
        fits.fold(0, |bits, reason| bits | 1 << (*reason as u32))
    };
    match name {
        "forwarded" => Ok(1 << Event::TRANSMITTED | 1 << Event::REDIRECTED),
        "passed" => Ok(of(Verdict::Pass)),
        "dropped" => Ok(of(Verdict::Drop)),
        name => {
            let found = Reason::ALL.iter().find(|reason| reason.label() == name);
            found.map(|reason| 1 << (*reason as u32)).ok_or_else(|| {
                let labels: Vec<&str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
                format!(
                    "`{name}` is no outcome: forwarded, passed, dropped, or one of {}",
                    labels.join(", ")
                )
            })
        }
    }
}

/// What ids stand for, as it was when the capture began.
struct Names {
    services: HashMap<u16, String>,
    backends: HashMap<u16, String>,
    interfaces: HashMap<u32, String>,
}

/// The file as it grows.
struct CaptureFile {
    names: Names,
    /// Numbers in the file by interface index.
    interfaces: HashMap<u32, u32>,
    left: u64,
    lost: u64,
    /// From CLOCK_MONOTONIC to the time since 1970.
    offset: Duration,
    snap_length: u32,
}

impl CaptureFile {
    /// Reads until enough was shown or nobody listens.
    fn write_all(
        &mut self,
        mut buffers: Vec<PerfEventArrayBuffer<MapData>>,
        sender: &mpsc::Sender<Vec<u8>>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut writer = PcapNgWriter::new(Vec::new())?;
        loop {
            let chunk = std::mem::take(writer.get_mut());
            if (!chunk.is_empty() && sender.blocking_send(chunk).is_err())
                || sender.is_closed()
                || self.left == 0
            {
                return Ok(());
            }
            let mut waiting: Vec<PollFd<'_>> = buffers
                .iter()
                .map(|buffer| PollFd::new(buffer, PollFlags::IN))
                .collect();
            match poll(&mut waiting, Some(&IDLE)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for buffer in &mut buffers {
                let mut result = Ok(());
                buffer.for_each(|event| {
                    if result.is_ok() {
                        result = self.write(&mut writer, &event);
                    }
                });
                result?;
            }
        }
    }

    fn write(
        &mut self,
        writer: &mut PcapNgWriter<Vec<u8>>,
        event: &PerfEvent<'_>,
    ) -> Result<(), pcap_file::PcapError> {
        let bytes = match event {
            PerfEvent::Lost { count } => {
                self.lost += count;
                return Ok(());
            }
            PerfEvent::Sample { head, tail } => [*head, *tail].concat(),
        };
        let Some((head, data)) = bytes.split_first_chunk::<{ Event::LENGTH }>() else {
            return Ok(());
        };
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let event = Event::from_bytes(head);
        let interface_id = self.interface(writer, event.ifindex)?;
        let kept = data.len().min(event.kept as usize);
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(event.time_ns) + self.offset,
            original_len: event.length,
            data: Cow::Borrowed(&data[..kept]),
            options: vec![EnhancedPacketOption::Comment(self.comment(&event).into())],
        };
        writer.write_pcapng_block(block).map(|_| ())
    }

    fn interface(
        &mut self,
        writer: &mut PcapNgWriter<Vec<u8>>,
        ifindex: u32,
    ) -> Result<u32, pcap_file::PcapError> {
        if let Some(number) = self.interfaces.get(&ifindex) {
            return Ok(*number);
        }
        let name = self.names.interfaces.get(&ifindex).cloned();
        let name = name.unwrap_or_else(|| format!("interface {ifindex}"));
        /// Nanoseconds.
        const RESOLUTION: u8 = 9;
        writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap_length,
            options: vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfTsResol(RESOLUTION),
            ],
        })?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(ifindex, number);
        Ok(number)
    }

    /// What became of a packet, in words.
    fn comment(&mut self, event: &Event) -> String {
        let mut text = match event.outcome {
            Event::TRANSMITTED => "XDP_TX: forwarded".to_owned(),
            Event::REDIRECTED => "XDP_REDIRECT: forwarded by another interface".to_owned(),
            number => {
                let reason = Reason::ALL.get(number as usize);
                let verdict = match reason.map(|reason| reason.verdict()) {
                    Some(Verdict::Drop) => "XDP_DROP",
                    Some(Verdict::Answer) => "XDP_TX: answered",
                    Some(Verdict::Pass) | None => "XDP_PASS",
                };
                format!("{verdict}: {}", reason.map_or("?", |reason| reason.label()))
            }
        };
        if let Some(backend) = self.names.backends.get(&event.backend) {
            text += &format!("; real server {backend}");
        }
        if let Some(service) = self.names.services.get(&event.service) {
            text += &format!("; service {service}");
        }
        if event.client != Address::default() {
            text += &format!("; client {}", from_wire(event.client));
        }
        if self.lost > 0 {
            text += &format!("; {} packets before this one were not captured", self.lost);
            self.lost = 0;
        }
        text
    }
}

/// From CLOCK_MONOTONIC to the time since 1970.
fn clock_offset() -> Duration {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let since_start = Duration::new(
        monotonic.tv_sec.unsigned_abs(),
        u32::try_from(monotonic.tv_nsec).unwrap_or_default(),
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(since_start)
}

/// The map that the buffers belong to.
pub type Events = PerfEventArray<MapData>;
