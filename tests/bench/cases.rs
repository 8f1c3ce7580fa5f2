//! What the benchmark of the data plane measures.

const EVERY_PACKET: u32 = u32::MAX;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    FloorTx,
    FloorSwap,
    Textbook,
    Product,
    /// The product with tables for a million flows.
    ProductLarge,
    /// The product with real servers in a VLAN.
    ProductVlan,
    /// The product with lists of a million prefixes of each version of IP.
    ProductListed,
}

/// One line of the result.
pub struct Case {
    /// As in the JSON file.
    pub name: &'static str,
    /// The textbook case of the ratio.
    pub against: &'static str,
    /// Whose cost it is.
    pub program: Program,
    /// How many flows take turns, less one; all ones if every packet is of another flow.
    pub flow_mask: u32,
    /// What is sent.
    pub packet: Packet,
}

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    Data,
    Syn,
    NotAVip,
    Ipv6,
    Tagged,
}

impl Packet {
    /// The program that prepares such packets.
    pub const fn wrapper(self) -> &'static str {
        match self {
            Packet::Data | Packet::Syn | Packet::NotAVip => "wrapper",
            Packet::Ipv6 => "wrapper_ipv6",
            Packet::Tagged => "wrapper_vlan",
        }
    }
}

const fn case(
    name: &'static str,
    against: &'static str,
    program: Program,
    flows: u32,
    packet: Packet,
) -> Case {
    let flow_mask = if flows == EVERY_PACKET {
        u32::MAX
    } else {
        flows - 1
    };
    Case {
        name,
        against,
        program,
        flow_mask,
        packet,
    }
}

/// The wrappers' own costs: subtracted from the others.
pub const FLOORS: [Case; 3] = [
    case("floor-tx", "floor-tx", Program::FloorTx, 1, Packet::Data),
    case(
        "floor-tx-ipv6",
        "floor-tx",
        Program::FloorTx,
        1,
        Packet::Ipv6,
    ),
    case(
        "floor-tx-vlan",
        "floor-tx",
        Program::FloorTx,
        1,
        Packet::Tagged,
    ),
];

/// Everything measured.
pub const CASES: [Case; 16] = [
    case("floor-tx", "textbook-1", Program::FloorTx, 1, Packet::Data),
    case(
        "floor-parse-swap",
        "textbook-1",
        Program::FloorSwap,
        1,
        Packet::Data,
    ),
    case(
        "textbook-1",
        "textbook-1",
        Program::Textbook,
        1,
        Packet::Data,
    ),
    case(
        "textbook-128k",
        "textbook-128k",
        Program::Textbook,
        1 << 17,
        Packet::Data,
    ),
    case(
        "textbook-new",
        "textbook-new",
        Program::Textbook,
        EVERY_PACKET,
        Packet::Syn,
    ),
    case(
        "established-1",
        "textbook-1",
        Program::Product,
        1,
        Packet::Data,
    ),
    case(
        "established-1k",
        "textbook-1",
        Program::Product,
        1 << 10,
        Packet::Data,
    ),
    case(
        "established-128k",
        "textbook-128k",
        Program::Product,
        1 << 17,
        Packet::Data,
    ),
    case(
        "established-1m",
        "textbook-128k",
        Program::ProductLarge,
        1 << 20,
        Packet::Data,
    ),
    case(
        "new-flows",
        "textbook-new",
        Program::Product,
        EVERY_PACKET,
        Packet::Data,
    ),
    case(
        "syn-flood",
        "textbook-new",
        Program::Product,
        EVERY_PACKET,
        Packet::Syn,
    ),
    case(
        "not-a-vip",
        "textbook-1",
        Program::Product,
        1,
        Packet::NotAVip,
    ),
    case(
        "ipv6-established",
        "textbook-1",
        Program::Product,
        1,
        Packet::Ipv6,
    ),
    case(
        "vlan-established",
        "textbook-1",
        Program::ProductVlan,
        1,
        Packet::Tagged,
    ),
    case(
        "listed-1m",
        "textbook-1",
        Program::ProductListed,
        1,
        Packet::Data,
    ),
    case(
        "listed-1m-ipv6",
        "textbook-1",
        Program::ProductListed,
        1,
        Packet::Ipv6,
    ),
];

impl Case {
    /// Whether every packet is of another flow.
    pub fn is_of_new_flows(&self) -> bool {
        self.flow_mask == u32::MAX
    }

    /// How many flows take turns, if they do.
    pub fn flows(&self) -> u32 {
        self.flow_mask.wrapping_add(1)
    }

    /// Which of [`FLOORS`] is this case's.
    pub fn floor(&self) -> usize {
        let same = |floor: &Case| floor.packet.wrapper() == self.packet.wrapper();
        FLOORS.iter().position(same).unwrap_or_default()
    }
}
