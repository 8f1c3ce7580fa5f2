//! Every reader of bytes with its corpus, and with random changes of it: what `cargo xtask fuzz` does,
//! shorter, without guidance, and in every test run. A failure prints the seed: `LBD_FUZZ_SEED=N`
//! replays it, `LBD_FUZZ_RUNS=N` makes N runs of each target.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

use targets::{TARGETS, Target};

/// Changes of one run at most: more make noise that is refused at the first byte.
const CHANGES: u64 = 6;
/// Longer inputs reach nothing that shorter ones do not.
const LONGEST: usize = 4096;

/// A small generator (Marsaglia's xorshift64*), so that a seed is all that a failure needs.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Names the run when the target panics.
struct Named(&'static str, u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: replay with LBD_FUZZ_SEED={}", self.0, self.1);
        }
    }
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no corpus", target.name);
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(corpus).clone();
    for _ in 0..random.next() % CHANGES {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 => {
                let bit = 1 << random.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let value = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'\n', b'[', b'=']);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let other = random.pick(corpus).clone();
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
        bytes.truncate(LONGEST);
    }
    bytes
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn exercise(name: &str, runs: u64) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    for bytes in &corpus {
        (target.run)(bytes);
    }
    let seeds = match number("LBD_FUZZ_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LBD_FUZZ_RUNS").unwrap_or(runs),
    };
    for seed in seeds {
        let _named = Named(target.name, seed);
        (target.run)(&changed(&corpus, &mut Random::new(seed)));
    }
}

macro_rules! every_target {
    ($($name:ident: $runs:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                exercise(stringify!($name), $runs);
            }
        )*

        /// A new target without a test would be missed here.
        #[test]
        fn all_are_tested() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

// How often each runs: some ten seconds in all.
every_target! {
    advert: 4_000_000,
    machine: 500_000,
    netlink: 500_000,
    ipvs: 400_000,
    sync: 400_000,
    process: 400_000,
    configuration: 80_000,
    sources: 400_000,
    request: 400_000,
    capture: 100_000,
    flow: 100_000,
    answer: 400_000,
}
