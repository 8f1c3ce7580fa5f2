//! Two CPUs on one flow table.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, ensure};
use aya::{
    EbpfLoader,
    maps::{Array, ProgramArray},
    programs::Xdp as AyaXdp,
};
use lb_common::bench::Traffic;
use lb_user::dataplane::{DataPlane, FlowQuery, xdp::Xdp};

use crate::{
    cases::{Packet, Program},
    harness::{PodTraffic, XDP_TX, frame, test_run, traffic},
};

/// What the two CPUs send, one after the other, and the first packet's number: first packets and later ones, then later
/// ones alone, so that both move flows out of the half-open table.
const PARTS: [([Packet; 2], u32); 2] = [
    ([Packet::Syn, Packet::Data], 0),
    ([Packet::Data, Packet::Data], 1 << 24),
];
/// Fewer flows in the table of promoted flows mean that nothing was tried. `WRAPPER` gives each flow sixteen packets.
const LEAST_ESTABLISHED: usize = 100_000;
const WRAPPER: &str = "wrapper_again";

/// Half of `packets` on each CPU for each of [`PARTS`]. The CPUs share the count of packets, so that they work on the same
/// flow at the same time now and then, and on the same slice of flows always. Returns what is wrong with the table
/// afterwards.
pub fn run(object: &Path, product: &mut Xdp, packets: u32) -> Result<Vec<String>> {
    let mut ebpf = EbpfLoader::new().load_file(object)?;
    let mut targets: ProgramArray<_> = ebpf.take_map("targets").context("targets")?.try_into()?;
    let mut map: Array<_, PodTraffic> = ebpf.take_map("traffic").context("traffic")?.try_into()?;
    let wrapper: &mut AyaXdp = ebpf.program_mut(WRAPPER).context(WRAPPER)?.try_into()?;
    wrapper.load()?;
    targets.set(Program::Product as u32, product.program()?.fd()?, 0)?;
    let wrapper = &*wrapper;
    for (sent, next) in PARTS {
        let traffic = Traffic {
            next,
            client: u32::from_ne_bytes([172, 17, 0, 1]),
            ..traffic(&frame(Packet::Data), u32::MAX)
        };
        map.set(0, PodTraffic(traffic), 0)?;
        std::thread::scope(|scope| -> Result<()> {
            let threads = sent.map(|packet| {
                scope.spawn(move || test_run(wrapper, &frame(packet), packets / 2, XDP_TX))
            });
            for thread in threads {
                let ended = thread.join();
                ended.map_err(|panic| anyhow::anyhow!("panicked: {panic:?}"))??;
            }
            Ok(())
        })?;
    }
    faults(product, packets)
}

fn faults(product: &mut Xdp, packets: u32) -> Result<Vec<String>> {
    let query = FlowQuery {
        limit: usize::MAX,
        ..FlowQuery::default()
    };
    let flows = product.flows(&query).map_err(anyhow::Error::msg)?.flows;
    let mut wrong = Vec::new();
    let mut homes: HashMap<&str, &str> = HashMap::new();
    for flow in &flows {
        if !flow.backend.starts_with("10.0.0.") || flow.service != "TCP 10.0.0.100:80" {
            wrong.push(format!("torn: {flow:?}"));
        }
        // Two first packets at once make two half-open flows, of which all CPUs find the same one.
        if flow.state == "half-open" {
            continue;
        }
        let home = homes.entry(&flow.client).or_insert(&flow.backend);
        if *home != flow.backend {
            wrong.push(format!("{} has {home} and {}", flow.client, flow.backend));
        }
    }
    let established = homes.len();
    println!(
        "{established} established of {} flows in the table after {packets} packets on each CPU",
        flows.len()
    );
    ensure!(
        established >= LEAST_ESTABLISHED,
        "only {established} flows were established"
    );
    Ok(wrong)
}
