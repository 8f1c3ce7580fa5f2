//! Two to five routers on a virtual clock with a seeded network between them: loss, delay, reordering,
//! duplicates, partitions, routers that sleep, crash, stop, fail and are reconfigured.
//!
//! The routers run the driver's own rounds (`round`, `groups`, `pace`, `runner`); in one world of
//! eight adverts go as bytes through encoder and decoder. `LBD_SIM_SEED=N` replays one world and tells
//! what happens in it; `LBD_SIM_SEEDS=N` shares N worlds out instead of ten thousand.

mod properties;
mod router;
mod world;

/// Worlds of one run. The shares of all properties are a little more than a whole.
const SEEDS: u64 = 10_000;

/// Runs a property over its share, in percent, of the seeds.
fn every_seed(share: u64, property: impl Fn(u64)) {
    let number = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(text.parse().expect("a number of a seed, or of seeds"))
    };
    let seeds = match number("LBD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LBD_SIM_SEEDS").unwrap_or(SEEDS) * share / 100,
    };
    for seed in seeds {
        let _named = Named(seed);
        property(seed);
    }
}

/// Names the seed when a test fails, whatever makes it fail.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with LBD_SIM_SEED={}", self.0);
        }
    }
}

/// A small deterministic generator (Marsaglia's xorshift64*, seeded by a step of splitmix64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mixed = (seed.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ (seed >> 3))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}
