//! Generic netlink's messages (include/uapi/linux/netlink.h, genetlink.h): what IPVS and the drivers' XDP features
//! are asked by. Pure.

pub mod attribute;

use self::attribute::Writer;

/// Bytes of a netlink message's header, and of a generic one behind it.
pub const HEADER: usize = 16;
/// The latter.
pub const GENERIC_HEADER: usize = 4;
/// An answer that is a status (NLMSG_ERROR).
pub const ERROR: u16 = 2;
/// A request (NLM_F_REQUEST).
pub const REQUEST: u16 = 0x1;
/// The family that names the others (GENL_ID_CTRL).
pub const CONTROL: u16 = 16;
/// The attribute with a family's number (CTRL_ATTR_FAMILY_ID).
pub const FAMILY_ID: u16 = 1;
/// CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME.
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
/// The version that IPVS, "netdev" and the family of families have.
const VERSION: u8 = 1;

/// The question for the number that a family has in this kernel.
pub fn family_question(name: &str, sequence: u32) -> Vec<u8> {
    let mut attributes = Writer::default();
    attributes.put_text(FAMILY_NAME, name);
    message(CONTROL, REQUEST, sequence, GET_FAMILY, &attributes.finish())
}

/// A request of generic netlink.
pub fn message(kind: u16, flags: u16, sequence: u32, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + GENERIC_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The sender's port: the kernel knows it.
    bytes.extend([0; 4]);
    bytes.extend([command, VERSION, 0, 0]);
    bytes.extend(attributes);
    bytes
}
