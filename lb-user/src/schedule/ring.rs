//! The ring of weighted round robin: every backend stands in it as often as its weight says, its
//! turns spread as evenly as they can be, so that a walk from any position gives exact shares.

use lb_common::limits::MAX_RING_SLOTS;

/// Slots of the ring for `weights`: their sum over their greatest common divisor, at most
/// [`MAX_RING_SLOTS`]. 0 when no weight is above 0.
pub fn length(weights: &[u32]) -> usize {
    let divisor = weights.iter().copied().fold(0, gcd);
    if divisor == 0 {
        return 0;
    }
    let exact: u64 = weights.iter().map(|w| u64::from(w / divisor)).sum();
    let live = weights.iter().filter(|w| **w > 0).count();
    usize::try_from(exact)
        .unwrap_or(usize::MAX)
        .min((MAX_RING_SLOTS as usize).max(live))
}

/// The ring: indexes into `weights`. Entry `i` appears `weights[i] / gcd` times; where that would
/// exceed the limit, as near to its share as whole slots allow, and at least once.
pub fn build(weights: &[u32]) -> Vec<u16> {
    let slots = length(weights);
    let counts = shares(weights, slots);
    let mut places: Vec<(u64, u16)> = Vec::with_capacity(slots);
    for (index, count) in counts.iter().enumerate() {
        // Turn k of n belongs at (2k + 1) / 2n of the ring: evenly spread, and no backend's turns
        // begin at the same point as another's. Scaled to integers; ties fall to file order.
        for turn in 0..u64::from(*count) {
            let position = ((2 * turn + 1) << 32) / (2 * u64::from(*count));
            places.push((position, index as u16));
        }
    }
    places.sort_unstable();
    places.into_iter().map(|(_, index)| index).collect()
}

/// How often each entry appears: exact, or by largest remainder when the ring is limited.
fn shares(weights: &[u32], slots: usize) -> Vec<u32> {
    let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let slots = slots as u64;
    let mut counts: Vec<u64> = weights
        .iter()
        .map(|w| (u64::from(*w) * slots / total).max(u64::from(*w > 0)))
        .collect();
    let given: u64 = counts.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] > 0).collect();
    if given <= slots {
        order.sort_by_key(|i| std::cmp::Reverse(u64::from(weights[*i]) * slots % total));
        let missing = usize::try_from(slots - given).unwrap_or(0);
        for index in order.into_iter().cycle().take(missing) {
            counts[index] += 1;
        }
    } else {
        // Tiny weights were lifted to one slot each; the largest ones pay for it.
        for _ in 0..given - slots {
            if let Some(largest) = order.iter().copied().max_by_key(|i| counts[*i]) {
                counts[largest] -= 1;
            }
        }
    }
    counts
        .into_iter()
        .map(|count| u32::try_from(count).unwrap_or(u32::MAX))
        .collect()
}

/// The greatest common divisor; 0 has all divisors.
pub fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(ring: &[u16], index: usize) -> usize {
        ring.iter().filter(|i| usize::from(**i) == index).count()
    }

    #[test]
    fn known_rings() {
        let rows: &[(&[u32], &[u16])] = &[
            (&[], &[]),
            (&[0, 0], &[]),
            (&[5], &[0]),
            (&[1, 1], &[0, 1]),
            (&[7, 7, 7], &[0, 1, 2]),
            (&[1, 3], &[1, 0, 1, 1]),
            (&[2, 1], &[0, 1, 0]),
            (&[5, 0], &[0]),
            (&[100, 300], &[1, 0, 1, 1]),
        ];
        for (weights, ring) in rows {
            assert_eq!(build(weights), *ring, "{weights:?}");
        }
    }

    #[test]
    fn extreme_weights() {
        let ring = build(&[1, 1000]);
        assert_eq!((ring.len(), count(&ring, 0)), (1001, 1));
        let ring = build(&[65_535, 65_534, 1]);
        assert_eq!(ring.len(), 65_536);
        assert_eq!(count(&ring, 2), 1, "a tiny weight is never rounded away");
        assert!(count(&ring, 0).abs_diff(32_768) <= 1);
    }

    proptest! {
        #[test]
        fn exact_shares(weights in prop::collection::vec(0u32..50, 0..40)) {
            let ring = build(&weights);
            let divisor = weights.iter().copied().fold(0, gcd);
            for (index, weight) in weights.iter().enumerate() {
                let expected = weight.checked_div(divisor).unwrap_or(0) as usize;
                prop_assert_eq!(count(&ring, index), expected);
            }
            prop_assert_eq!(ring.len(), length(&weights));
        }

        /// In any window of the ring no backend is further from its share than the number of
        /// backends allows: "smooth" as opposed to bursts of one backend.
        #[test]
        fn smooth(weights in prop::collection::vec(1u32..20, 2..10)) {
            let ring = build(&weights);
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (index, weight) in weights.iter().enumerate() {
                let share = f64::from(*weight) / total;
                let mut seen = 0.0;
                for (position, slot) in ring.iter().enumerate() {
                    if usize::from(*slot) == index { seen += 1.0; }
                    let expected = share * (position + 1) as f64;
                    prop_assert!((seen - expected).abs() <= weights.len() as f64);
                }
            }
        }

        #[test]
        fn limited_rings_keep_everybody(weights in prop::collection::vec(0u32..65_536, 1..60)) {
            let ring = build(&weights);
            prop_assert!(ring.len() <= MAX_RING_SLOTS as usize);
            prop_assert_eq!(ring.len(), length(&weights));
            for (index, weight) in weights.iter().enumerate() {
                prop_assert_eq!(*weight > 0, count(&ring, index) > 0);
            }
        }
    }
}
