//! The messages of the kernel's process connector (linux/cn_proc.h), decoded. Pure.
//!
//! ```text
//!  0 nlmsghdr  | length u32 | type u16 | flags u16 | sequence u32 | port u32 |
//! 16 cn_msg    | index u32 = 1 | value u32 = 1 | sequence u32 | ack u32 | length u16 | flags u16 |
//! 36 subscribing:  operation u32
//! 36 proc_event:   what u32 | cpu u32 | time u64 | 52: of each kind its own
//! ```
//! All in the order of bytes of the machine.

/// Netlink message type of an ordinary message (NLMSG_DONE).
const DONE: u16 = 3;
/// Netlink header and connector header.
const HEADERS: usize = 36;
/// Where an event's own part begins.
const OWN: usize = 52;
/// CN_IDX_PROC and CN_VAL_PROC.
const PROC: u32 = 1;
/// PROC_CN_MCAST_LISTEN.
const LISTEN: u32 = 1;

/// What the kernel tells. Ids are those of whole processes (of a thread group's leader).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcEvent {
    /// The answer to the subscription: 0, or an error number.
    Answer(u32),
    /// A process made another one.
    Fork {
        /// The one that was there.
        parent: u32,
        /// The new one.
        child: u32,
    },
    /// A process runs another program, or changed its name.
    Changed(u32),
    /// A process has ended.
    Exit(u32),
}

/// The message that subscribes.
pub fn subscription() -> [u8; HEADERS + 4] {
    let mut message = [0; HEADERS + 4];
    message[0..4].copy_from_slice(&(HEADERS as u32 + 4).to_ne_bytes());
    message[4..6].copy_from_slice(&DONE.to_ne_bytes());
    message[16..20].copy_from_slice(&PROC.to_ne_bytes());
    message[20..24].copy_from_slice(&PROC.to_ne_bytes());
    message[32..34].copy_from_slice(&4u16.to_ne_bytes());
    message[36..40].copy_from_slice(&LISTEN.to_ne_bytes());
    message
}

/// What a message says; `None` for what is of no interest, as what threads do.
pub fn decode(message: &[u8]) -> Option<ProcEvent> {
    let number = |at: usize| -> Option<u32> {
        let bytes = message.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    if number(16)? != PROC || number(20)? != PROC {
        return None;
    }
    let (first, second) = (number(OWN)?, || number(OWN + 4));
    // Each event names thread and process; a process's own thread has its number.
    let process = || second().filter(|process| *process == first);
    match number(HEADERS)? {
        0 => Some(ProcEvent::Answer(first)),
        // PROC_EVENT_FORK: the parent's thread and process, then the child's.
        1 => {
            let (thread, child) = (number(OWN + 8)?, number(OWN + 12)?);
            (thread == child).then_some(ProcEvent::Fork {
                parent: second()?,
                child,
            })
        }
        // PROC_EVENT_EXEC, PROC_EVENT_COMM. A thread that runs a program becomes the process.
        2 => second().map(ProcEvent::Changed),
        0x200 => process().map(ProcEvent::Changed),
        // PROC_EVENT_EXIT.
        0x8000_0000 => process().map(ProcEvent::Exit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a Linux 6.18 on x86-64 sent them.
    #[test]
    fn messages_of_a_kernel() {
        let head = "4c0000000300000000000000000000000100000001000000000000000000000028000000";
        let rows = [
            (
                "0000000000000000b23046f55401000000000000",
                Some(ProcEvent::Answer(0)),
            ),
            (
                "01000000000000005a6b48f554010000ab590000ab590000d5590000d5590000",
                Some(ProcEvent::Fork {
                    parent: 0x59ab,
                    child: 0x59d5,
                }),
            ),
            // A thread.
            (
                "01000000000000005a6b48f554010000ab590000ab590000d6590000ab590000",
                None,
            ),
            (
                "020000000100000021df91f554010000d5590000d5590000",
                Some(ProcEvent::Changed(0x59d5)),
            ),
            (
                "000200000000000021df91f554010000d5590000d559000078000000",
                Some(ProcEvent::Changed(0x59d5)),
            ),
            (
                "000200000000000021df91f554010000d6590000d559000078000000",
                None,
            ),
            (
                "0000008001000000f18799f554010000d5590000d55900000000000011000000ab590000ab590000",
                Some(ProcEvent::Exit(0x59d5)),
            ),
            (
                "0000008000000000ddd27ffd54010000a35900005858000000000000ffffffff0000000000000000",
                None,
            ),
            // PROC_EVENT_UID.
            (
                "0400000000000000ddd27ffd54010000a3590000a359000000000000",
                None,
            ),
            ("01000000000000005a6b48f554010000ab590000ab590000", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let text = format!("{head}{text}");
            let bytes: Vec<u8> = (0..text.len() / 2)
                .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
                .collect();
            assert_eq!(decode(&bytes), expected, "{text}");
            for length in 0..bytes.len() {
                let _ = decode(&bytes[..length]);
            }
        }
    }

    #[test]
    fn somebody_elses_messages_are_nothing() {
        let mut message = [0; 80];
        assert_eq!(decode(&message), None);
        message[16..20].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(decode(&message), None);
        message[20..24].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(decode(&message), Some(ProcEvent::Answer(0)));
    }

    #[test]
    fn the_subscription() {
        let bytes = subscription();
        assert_eq!(bytes.len(), 40);
        assert_eq!((bytes[0], bytes[4], bytes[32], bytes[36]), (40, 3, 4, 1));
    }
}
