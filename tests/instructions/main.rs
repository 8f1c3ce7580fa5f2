//! What a packet costs in the XDP program and in the kernel's IPVS, both with direct return, in
//! instructions. Runs in a guest whose clock counts them (`cargo xtask bench ipvs`), so that nothing
//! depends on the machine: a budget can be held.
//!
//! Frames come in as from a network card's driver (`BPF_PROG_RUN` with live frames) and leave by a veth
//! pair whose far end drops them; every one must arrive there. Making a frame and dropping it at once is
//! subtracted from all.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and a benchmark may"
)]

mod ground;
mod sides;

use serde_json::json;

use self::{
    ground::Way,
    sides::{Bench, Stream, Target},
};

/// Packets of a measurement of one flow, and of a flood.
const PACKETS: u32 = 20_000;
/// New flows of a measurement, of one client: as many ports as it has.
const NEW_FLOWS: u32 = 16_000;
/// Measurements of each kind; the middle one counts.
const ROUNDS: u32 = 3;

/// Instructions that the program itself may need for a packet: a little more than it does. Whoever makes
/// it cheaper lowers them.
const BUDGETS: [(Stream, f64); 3] = [
    (Stream::Established, 250.0),
    (Stream::NewFlows, 1_430.0),
    (Stream::SynFlood, 1_430.0),
];

/// Net instructions of each target for one kind of traffic.
struct Costs {
    /// A program that sends each frame back and does nothing else: the way out.
    way_out: f64,
    textbook: f64,
    xdp: f64,
    ipvs: f64,
    /// IPVS where frames end at a device that throws them away.
    ipvs_to_nowhere: f64,
}

impl Costs {
    /// What the program itself needs, without the way out.
    fn program(&self) -> f64 {
        self.xdp - self.way_out
    }

    fn ratio(&self) -> f64 {
        self.ipvs / self.xdp
    }
}

fn middle(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

/// All targets for one kind of traffic.
fn costs(bench: &mut Bench, stream: Stream, packets: u32) -> Costs {
    let mut cost = |target, way| {
        let rounds = (0..ROUNDS).map(|round| {
            let cost = bench.cost(target, way, stream, round, packets).unwrap();
            println!("{stream:?}, {target:?}, {way:?}: {cost:.1} instructions a packet, none lost");
            cost
        });
        middle(rounds.collect())
    };
    let floor = cost(Target::Drop, Way::Veth);
    let mut net = |target, way| cost(target, way) - floor;
    Costs {
        way_out: net(Target::Transmit, Way::Veth),
        textbook: net(Target::Textbook, Way::Veth),
        xdp: net(Target::Product, Way::Veth),
        ipvs: net(Target::Ipvs, Way::Veth),
        ipvs_to_nowhere: net(Target::Ipvs, Way::Nowhere),
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

fn shown(costs: &Costs) -> serde_json::Value {
    json!({
        "xdp": rounded(costs.xdp),
        "ipvs": rounded(costs.ipvs),
        "ratio": rounded(costs.ratio()),
        "way_out": rounded(costs.way_out),
        "program": rounded(costs.program()),
        "textbook": rounded(costs.textbook),
        "ipvs_to_nowhere": rounded(costs.ipvs_to_nowhere),
    })
}

#[test]
fn instructions_of_a_packet_are_within_the_budget() {
    ground::prepare().unwrap();
    let mut bench = Bench::new().unwrap();
    let all = BUDGETS.map(|(stream, budget)| {
        let packets = match stream {
            Stream::Established | Stream::SynFlood => PACKETS,
            Stream::NewFlows => NEW_FLOWS,
        };
        (stream, budget, costs(&mut bench, stream, packets))
    });
    bench.remove().unwrap();
    let [(_, _, established), (_, _, new_flows), (_, _, flood)] = &all;
    let result = json!({
        "net_ratio": rounded(established.ratio()),
        "instructions": {
            "established": rounded(established.xdp),
            "new-flows": rounded(new_flows.xdp),
            "syn-flood": rounded(flood.xdp),
        },
        "cases": {
            "established": shown(established),
            "new-flows": shown(new_flows),
            "syn-flood": shown(flood),
        },
    });
    // On a line of its own, whatever the harness has begun to print.
    println!("\nRESULT {result}");
    for (stream, budget, costs) in &all {
        let program = costs.program();
        assert!(
            program <= *budget,
            "{stream:?}: the program needs {program} instructions, and its budget is {budget}"
        );
    }
}
