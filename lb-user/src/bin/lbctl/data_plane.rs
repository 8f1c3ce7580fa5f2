//! Which data plane forwards, and what takes over from it, as text for people. Pure.

use clap::ValueEnum;
use lb_user::{api::proto::DataPlaneSnapshot, dataplane::switching::Switching};

/// What an operator may want.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Which {
    /// XDP where it can be, else IPVS.
    Auto,
    /// XDP; when it is lost, it is only attached again.
    Xdp,
    /// The kernel's IPVS.
    Ipvs,
}

/// Lines of `lbctl status`; an order, the fallback, the slow path and the last switch, each where there is one.
pub fn lines(plane: &DataPlaneSnapshot) -> Vec<String> {
    let switching = &plane.switching;
    let mut lines = Vec::new();
    if let Some(ordered) = &switching.ordered {
        lines.push(format!(
            "ordered     {ordered}, by an operator; `lbctl dataplane auto` ends that"
        ));
    }
    lines.extend(fallback(switching));
    if let Some(why) = &switching.obstacle {
        lines.push(format!("fallback    none: {why}"));
    }
    if let Some(slow) = &plane.slow_path {
        lines.push(match &slow.obstacle {
            None if slow.servers == 0 => "slow path   none: no real servers".to_owned(),
            None => format!(
                "slow path   through IPVS, for {} real servers; {} packets",
                slow.servers, slow.packets
            ),
            Some(why) => format!("slow path   none: {why}"),
        });
    }
    if let Some(ms) = switching.retry_in_ms {
        let refusal = match &switching.refusal {
            None => String::new(),
            Some(why) => format!("; the last time: {why}"),
        };
        lines.push(format!(
            "fallback    XDP is tried again in {:.1} s{refusal}",
            ms as f64 / 1_000.0
        ));
    }
    if let Some(last) = &switching.last {
        lines.push(format!(
            "switched    to {} {} s ago, within {:.1} ms, with {} connections: {}; {} times to IPVS and {} to XDP",
            last.to,
            last.ago_s,
            last.took_us as f64 / 1_000.0,
            last.connections,
            last.reason,
            switching.to_ipvs,
            switching.to_xdp
        ));
    }
    lines
}

/// What takes over, where something does.
fn fallback(switching: &Switching) -> Option<String> {
    if !switching.ready {
        return None;
    }
    let mut line = "fallback    IPVS takes over when XDP is lost".to_owned();
    if let Some(why) = &switching.unguarded {
        line += &format!(", but this host resets connections meanwhile: {why}");
    }
    if let Some(why) = &switching.lacking {
        line += &format!("; perhaps it cannot: {why}");
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fallback_lacks_is_told() {
        let of = |ready, unguarded: Option<&str>, lacking: Option<&str>| {
            fallback(&Switching {
                ready,
                unguarded: unguarded.map(str::to_owned),
                lacking: lacking.map(str::to_owned),
                ..Switching::default()
            })
        };
        let ready = "fallback    IPVS takes over when XDP is lost";
        assert_eq!(of(true, None, None).unwrap(), ready);
        assert_eq!(
            of(true, Some("no nf_tables"), Some("no mh")).unwrap(),
            format!(
                "{ready}, but this host resets connections meanwhile: no nf_tables; perhaps it cannot: no mh"
            )
        );
        assert_eq!(of(false, Some("no nf_tables"), None), None);
    }
}
