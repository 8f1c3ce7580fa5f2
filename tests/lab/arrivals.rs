//! Health checks as real servers see them: when connections come, and how evenly.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;

use crate::sniffer::Frame;

/// How much later than an interval after the last one connections of the same check came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Arrivals {
    /// Connections.
    pub count: usize,
    /// Half of all were less late, in ms; who comes early is late by less than nothing.
    pub p50: f64,
    /// 99 of 100 were.
    pub p99: f64,
    /// The latest.
    pub max: f64,
    /// The earliest.
    pub min: f64,
}

/// Of these frames, for checks that each have an address and port of their own. `None` where none came twice.
pub fn arrivals(frames: &[Frame], interval: Duration) -> Option<Arrivals> {
    let mut last = HashMap::new();
    let (mut count, mut late) = (0, Vec::new());
    for (time, frame) in frames {
        let Some((check, client)) = connection(frame) else {
            continue;
        };
        match last.insert(check, (client, *time)) {
            // Once more, because nobody answered.
            Some((before, first)) if before == client => {
                last.insert(check, (client, first));
                continue;
            }
            Some((_, before)) => {
                let passed = time.saturating_sub(before).as_secs_f64();
                late.push((passed - interval.as_secs_f64()) * 1e3);
            }
            None => {}
        }
        count += 1;
    }
    late.sort_by(f64::total_cmp);
    let at = |share: usize| late.get((late.len() * share / 100).min(late.len() - 1));
    Some(Arrivals {
        count,
        min: *late.first()?,
        p50: *at(50)?,
        p99: *at(99)?,
        max: *late.last()?,
    })
}

/// Whom a SYN over IPv4 asks for, as address and port, and from which port.
fn connection(frame: &[u8]) -> Option<(([u8; 4], u16), u16)> {
    let (kind, ip) = (frame.get(12..14)?, frame.get(14..)?);
    let is_tcp = kind == [8, 0] && *ip.get(9)? == 6;
    let address = ip.get(16..20)?.try_into().ok()?;
    let tcp = ip.get(usize::from(ip.first()? & 15) * 4..)?;
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let is_syn = tcp.get(13)? & 0x12 == 0x02;
    (is_tcp && is_syn).then_some(((address, port(2)?), port(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of TCP to 10.1.32.`host`, from a port, at a time in ms.
    fn frame(ms: u64, host: u8, port: u16, from: u16, flags: u8) -> Frame {
        let mut bytes = vec![0; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
        bytes.extend([10, 1, 15, 43, 10, 1, 32, host]);
        bytes.extend(from.to_be_bytes());
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        (Duration::from_millis(ms), bytes)
    }

    #[test]
    fn lateness_is_what_exceeds_the_interval() {
        const SYN: u8 = 2;
        let second = Duration::from_secs(1);
        let mut frames = vec![
            frame(0, 1, 80, 5_000, SYN),
            frame(1, 1, 80, 5_000, 0x10),
            frame(10, 2, 80, 5_000, SYN),
            frame(20, 1, 81, 5_000, SYN),
        ];
        assert_eq!(arrivals(&frames, second), None);
        frames.extend([
            frame(1_004, 1, 80, 5_001, SYN),
            // Their own clients' SYN+ACK is none, and neither is a repetition.
            frame(1_005, 1, 80, 5_002, 0x12),
            frame(1_008, 2, 80, 5_001, SYN),
            frame(1_500, 2, 80, 5_001, SYN),
            frame(1_050, 1, 81, 5_001, SYN),
            frame(2_009, 2, 80, 5_002, SYN),
            (Duration::ZERO, vec![0; 20]),
        ]);
        let seen = arrivals(&frames, second).unwrap();
        assert_eq!(seen.count, 7);
        let ms = [seen.min, seen.p50, seen.p99, seen.max].map(f64::round);
        assert_eq!(ms, [-2.0, 4.0, 30.0, 30.0]);
    }
}
