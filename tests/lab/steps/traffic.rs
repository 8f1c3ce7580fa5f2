//! What clients get while nothing or only real servers fail.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Seen;
use crate::{
    Director, Guide, Node,
    guide::{self, Settings, VIP},
    http::{self, Prober},
};

/// Step 2.
pub fn weights(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    share(guide, seen, [20, 20])?;
    let changed = Settings {
        weights: [1, 3],
        ..Settings::of(100)
    };
    guide.node1.configure(&guide::config(&changed))?;
    let reload = guide.node1.ctl(&["reload"])?;
    seen.note("reload", reload.trim());
    share(guide, seen, [10, 30])?;
    guide.node1.configure(&guide::config(&Settings::of(100)))?;
    guide.node1.ctl(&["reload"]).map(|_| ())
}

/// 40 requests, who answered them, and where they were forwarded.
fn share(guide: &Guide, seen: &mut Seen, expected: [usize; 2]) -> Result<()> {
    let director = &guide.node1;
    let (packets, stack) = (forwarded(director)?, forwarded_by_stack(&director.node)?);
    let pages = http::get_many(&guide.client, VIP, 40)?;
    let count = |page| pages.iter().filter(|p| *p == page).count();
    let shares = [count("rs1"), count("rs2")];
    let by_xdp = forwarded(director)? - packets;
    let by_stack = forwarded_by_stack(&director.node)? - stack;
    let weights: Vec<String> = director
        .service()?
        .backends
        .iter()
        .filter(|b| !b.sorry)
        .map(|b| b.weight.to_string())
        .collect();
    seen.note(
        &format!("40 requests at {}", weights.join(":")),
        format!("rs1 {}, rs2 {}", shares[0], shares[1]),
    );
    seen.note(
        &format!("packets at {}", weights.join(":")),
        json!({ "xdp": by_xdp, "stack": by_stack }),
    );
    ensure!(
        shares == expected,
        "shares are {shares:?} instead of {expected:?}"
    );
    // SYN, ACK, request, FIN, ACK: five packets a request at least.
    ensure!(by_xdp >= 200, "XDP forwarded only {by_xdp} packets");
    ensure!(
        by_stack == 0,
        "the director's stack forwarded {by_stack} packets"
    );
    Ok(())
}

fn forwarded(director: &Director) -> Result<u64> {
    Ok(director.service()?.backends.iter().map(|b| b.packets).sum())
}

/// The kernel's count of forwarded IPv4 packets.
fn forwarded_by_stack(node: &Node) -> Result<u64> {
    let text = node.run("cat", &["/proc/net/snmp"])?;
    let mut rows = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (
        rows.next().context("no names")?,
        rows.next().context("no values")?,
    );
    let at = names
        .split(' ')
        .position(|name| name == "ForwDatagrams")
        .context("no counter")?;
    Ok(values.split(' ').nth(at).context("no value")?.parse()?)
}

/// Step 3.
pub fn health(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let began = Instant::now();
    guide.rs2.stop()?;
    guide.node1.wait_for_backends(&["up", "down", "draining"])?;
    seen.note("rs2 stopped, out of the ring after (ms)", millis(began));
    let pages = http::get_many(&guide.client, VIP, 40)?;
    ensure!(
        pages.iter().all(|page| page == "rs1"),
        "not all by rs1: {pages:?}"
    );
    seen.note("40 requests without rs2", "rs1 40");

    let began = Instant::now();
    guide.rs1.stop()?;
    guide.node1.wait_for_backends(&["down", "down", "up"])?;
    seen.note("rs1 stopped too, out after (ms)", millis(began));
    let pages = http::get_many(&guide.client, VIP, 10)?;
    ensure!(
        pages.iter().all(|page| page == "sorry"),
        "not all sorry pages: {pages:?}"
    );
    seen.note("10 requests without real servers", "sorry 10");

    let began = Instant::now();
    guide.rs1.resume(&guide.lab)?;
    guide.rs2.resume(&guide.lab)?;
    guide.node1.wait_for_backends(&["up", "up", "draining"])?;
    seen.note("both back after (ms)", millis(began));
    let pages = http::get_many(&guide.client, VIP, 40)?;
    let count = |page| pages.iter().filter(|p| *p == page).count();
    seen.note(
        "40 requests with both",
        format!("rs1 {}, rs2 {}", count("rs1"), count("rs2")),
    );
    ensure!((count("rs1"), count("rs2")) == (20, 20), "{pages:?}");
    Ok(())
}

/// Step 4.
pub fn transfers(guide: &mut Guide, seen: &mut Seen) -> Result<()> {
    let file = noise(50_000_000, 1);
    guide.rs1.publish("large", &file)?;
    guide.rs2.publish("large", &file)?;
    let path = guide.lab.directory().join("downloaded");
    let target = path.to_string_lossy().into_owned();
    let url = format!("http://{VIP}/large");
    guide.client.run(
        "curl",
        &[
            "--silent",
            "--fail",
            "--max-time",
            "60",
            "--output",
            &target,
            &url,
        ],
    )?;
    let (sent, received) = (digest(&file), digest(&std::fs::read(&path)?));
    seen.note("download of 50 MB, sha256", received.clone());
    ensure!(sent == received, "sent {sent}, received {received}");

    let body = noise(10_000_000, 2);
    let source = guide.lab.directory().join("upload");
    std::fs::write(&source, &body)?;
    let data = format!("@{}", source.display());
    let url = format!("http://{VIP}/upload");
    let answer = guide.client.run(
        "curl",
        &[
            "--silent",
            "--fail",
            "--max-time",
            "60",
            "--header",
            "Expect:",
            "--data-binary",
            &data,
            &url,
        ],
    )?;
    ensure!(
        answer == "stored",
        "the upload was answered with {answer:?}"
    );
    let uploads = [guide.rs1.uploads()?, guide.rs2.uploads()?].concat();
    let sent = digest(&body);
    let found = uploads
        .iter()
        .map(|upload| digest(upload))
        .find(|stored| *stored == sent);
    seen.note(
        "POST of 10 MB, sha256",
        found.clone().unwrap_or_else(|| "not stored".to_owned()),
    );
    ensure!(
        found.is_some(),
        "no upload of {} is what was sent",
        uploads.len()
    );
    Ok(())
}

/// Bytes that do not compress and are the same every time (xorshift64).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn millis(began: Instant) -> u64 {
    Duration::as_millis(&began.elapsed()) as u64
}

/// Requests go on through `work`; the samples tell how it was for a client that gives each request
/// `limit`.
pub fn under_requests(
    client: &Node,
    vip: std::net::Ipv4Addr,
    limit: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<http::Sample>> {
    let prober = Prober::start(client, vip, limit)?;
    std::thread::sleep(Duration::from_millis(300));
    let result = work();
    std::thread::sleep(Duration::from_millis(700));
    let samples = prober.finish()?;
    result?;
    Ok(samples)
}
