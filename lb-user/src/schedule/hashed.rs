//! The tables of the schedulers `sh` and `mh`, filled as the kernel's IPVS does
//! (net/netfilter/ipvs/ip_vs_sh.c, ip_vs_mh.c), so that XDP, IPVS and another director agree on a
//! client's real server without talking.
//!
//! Maglev: Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI
//! 2016, section 3.4; with weights as turns.

use lb_common::{
    Address,
    hashing::{self, MAGLEV_OFFSET_KEY, MAGLEV_PLACES, MAGLEV_SKIP_KEY, SOURCE_BUCKETS},
};

/// A real server in the kernel's order.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// What the table says where the server is chosen.
    pub index: u16,
    /// Its own address.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// 0-65535.
    pub weight: u32,
}

/// The kernel's IP_VS_MH_TAB_BITS: a server's turns in a row have at most this many bits.
const TURN_BITS: u32 = 6;

/// 256 buckets, as many for each server in a row as its weight says; one for weight 0, whose clients
/// are refused.
pub fn source(members: &[Member]) -> Vec<Option<u16>> {
    let turns = |member: &Member| member.weight.max(1) as usize;
    let walk = members
        .iter()
        .cycle()
        .flat_map(|member| std::iter::repeat_n(Some(member.index), turns(member)));
    if members.is_empty() {
        return Vec::new();
    }
    walk.take(SOURCE_BUCKETS as usize).collect()
}

/// 4,093 places. Each server prefers them in an order of its own; in turns, each takes as many of
/// those it prefers and that are free as its weight says.
pub fn maglev(members: &[Member]) -> Vec<Option<u16>> {
    let places = MAGLEV_PLACES as usize;
    let turns = turns(members);
    if turns.iter().all(|turns| *turns == 0) {
        return Vec::new();
    }
    let mut table = vec![None; places];
    let mut preferences: Vec<(usize, usize)> = members.iter().map(preference).collect();
    let mut taken = 0;
    for (index, member) in members.iter().enumerate().cycle() {
        let (next, step) = &mut preferences[index];
        for _ in 0..turns[index] {
            while table[*next].is_some() {
                *next = (*next + *step) % places;
            }
            table[*next] = Some(member.index);
            taken += 1;
            if taken == places {
                return table;
            }
        }
    }
    table
}

/// Where a server's preferences begin, and their step.
fn preference(member: &Member) -> (usize, usize) {
    let subject = hashing::subject(member.address, member.port);
    let offset = hashing::maglev(subject, MAGLEV_OFFSET_KEY) % MAGLEV_PLACES;
    let skip = hashing::maglev(subject, MAGLEV_SKIP_KEY) % (MAGLEV_PLACES - 1) + 1;
    (offset as usize, skip as usize)
}

/// Weights over their common divisor, shifted so that the largest has at most [`TURN_BITS`] bits, and
/// at least 1 for any weight above 0.
fn turns(members: &[Member]) -> Vec<u32> {
    let weights = || members.iter().map(|member| member.weight);
    let divisor = weights().fold(0, super::ring::gcd);
    if divisor == 0 {
        return vec![0; members.len()];
    }
    let largest = weights().max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - largest.leading_zeros()).saturating_sub(TURN_BITS);
    weights()
        .map(|weight| match weight {
            0 => 0,
            weight => ((weight / divisor) >> shift).max(1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        let member = |(index, weight): (u16, &u32)| Member {
            index,
            address: Address::v4(u32::from_ne_bytes([10, 0, 0, index as u8 + 1])),
            port: 80,
            weight: *weight,
        };
        (0..).zip(weights).map(member).collect()
    }

    fn count(table: &[Option<u16>], index: u16) -> usize {
        table.iter().filter(|slot| **slot == Some(index)).count()
    }

    #[test]
    fn buckets_of_sh_follow_the_weights_in_order() {
        let table = source(&members(&[1, 3, 0]));
        let start: Vec<u16> = table.iter().take(7).flatten().copied().collect();
        assert_eq!(start, [0, 1, 1, 1, 2, 0, 1]);
        assert_eq!(table.len(), 256);
        assert!(source(&[]).is_empty());
    }

    /// The paper's population loop for equal weights, written from its pseudocode: entry after entry,
    /// server after server, the next preferred free one.
    fn published(members: &[Member]) -> Vec<Option<u16>> {
        let m = MAGLEV_PLACES as u64;
        let permutation: Vec<Vec<u64>> = members
            .iter()
            .map(|member| {
                let (offset, skip) = preference(member);
                (0..m)
                    .map(|j| (offset as u64 + j * skip as u64) % m)
                    .collect()
            })
            .collect();
        let mut next = vec![0; members.len()];
        let mut entry = vec![None; m as usize];
        let mut n = 0;
        loop {
            for i in 0..members.len() {
                let mut c = permutation[i][next[i]];
                while entry[c as usize].is_some() {
                    next[i] += 1;
                    c = permutation[i][next[i]];
                }
                entry[c as usize] = Some(members[i].index);
                next[i] += 1;
                n += 1;
                if n == m {
                    return entry;
                }
            }
        }
    }

    #[test]
    fn maglev_is_the_published_algorithm() {
        for count in [1, 2, 3, 7, 100] {
            let members = members(&vec![5; count]);
            assert_eq!(maglev(&members), published(&members), "{count}");
        }
    }

    #[test]
    fn weights_are_turns() {
        assert_eq!(turns(&members(&[10, 30, 0])), [1, 3, 0]);
        assert_eq!(
            turns(&members(&[1, 1000])),
            [1, 62],
            "1000 has ten bits, of which six stay"
        );
        let table = maglev(&members(&[1, 3]));
        assert!(count(&table, 0).abs_diff(1023) <= 1);
        assert_eq!(count(&maglev(&members(&[2, 0])), 1), 0);
        assert!(maglev(&members(&[0])).is_empty());
    }

    proptest! {
        /// A server that goes away moves few clients of the others.
        #[test]
        fn little_moves(count in 3usize..20, gone in 0usize..3) {
            let all = members(&vec![1; count]);
            let mut fewer = all.clone();
            fewer.remove(gone);
            let (before, after) = (maglev(&all), maglev(&fewer));
            let moved = before.iter().zip(&after)
                .filter(|(old, new)| **old != Some(gone as u16) && old != new)
                .count();
            prop_assert!(moved < before.len() / 5, "{} of {}", moved, before.len());
        }

        #[test]
        fn shares_are_even(count in 1usize..60) {
            let table = maglev(&members(&vec![1; count]));
            let least = table.len() / count;
            for index in 0..count {
                let share = super::tests::count(&table, index as u16);
                prop_assert!(share == least || share == least + 1);
            }
        }
    }
}
