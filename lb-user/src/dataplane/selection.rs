//! Which data plane runs: by what the configuration permits, by what its services need, and by what
//! this machine can do.

use super::{
    DataPlaneError, ipvs,
    ipvs::Ipvs,
    switching::{Alone, Pair, Planes},
    xdp::{self, Hook, Xdp},
};
use crate::model::{Config, Mode, Runtime, VirtualService};

/// Something to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Xdp(Hook),
    Ipvs,
}

impl Attempt {
    const fn label(self) -> &'static str {
        match self {
            Attempt::Xdp(Hook::Native) => "native XDP",
            Attempt::Xdp(Hook::Generic) => "generic XDP",
            Attempt::Xdp(Hook::Either) => "XDP",
            Attempt::Ipvs => "IPVS",
        }
    }
}

/// Starts the first that works. What an earlier daemon left in the others is removed, in IPVS beside XDP only
/// when its connections have come.
pub fn start(config: &Config) -> Result<Planes, DataPlaneError> {
    let (attempts, because) = attempts(config)?;
    let mut refusals: Vec<String> = Vec::new();
    let mut last = None;
    for attempt in &attempts {
        match try_one(*attempt, config) {
            Ok((pair, alone)) => {
                let mut reason = because.clone();
                if !refusals.is_empty() {
                    reason = format!("{reason}; {}", refusals.join("; "));
                    tracing::warn!(reason, "using {}", attempt.label());
                }
                return Ok(Planes::new(pair, reason, alone));
            }
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                refusals.push(format!("{}: {error}", attempt.label()));
                last = Some(error);
            }
        }
    }
    match last {
        Some(only) if attempts.len() == 1 => Err(only),
        _ => Err(DataPlaneError::NoneWorks(refusals.join(". "))),
    }
}

/// What is the configuration's fault. A host without a bpffs, or without the rights to load a program, is one where
/// XDP cannot be: IPVS needs neither.
const fn is_final(error: &DataPlaneError) -> bool {
    matches!(
        error,
        DataPlaneError::NoInterface(_) | DataPlaneError::PinsInUse(_)
    )
}

/// The data plane, with another one beside it where that may take over; else why there is none.
fn try_one(attempt: Attempt, config: &Config) -> Result<(Pair, Option<Alone>), DataPlaneError> {
    let (dataplane, runtime) = (&config.dataplane, &config.runtime);
    match attempt {
        Attempt::Xdp(hook) => {
            let after_ipvs = ipvs::was_left(runtime) && dataplane.mode == Mode::Auto;
            let plane = Box::new(Xdp::start(dataplane, runtime, hook, after_ipvs)?);
            if dataplane.mode != Mode::Auto {
                remove_ipvs_leftovers(runtime);
                let (pair, alone) = with_slow_path(plane, config);
                return Ok((pair, Some(alone)));
            }
            // Without services that forwarded there are no connections that would have to come first.
            if !ipvs::was_left(runtime) {
                remove_ipvs_leftovers(runtime);
            }
            let (mut pair, alone) = with_fallback(plane, config);
            if let Pair::Both { .. } = pair {
                // What an earlier lbd left in IPVS goes when its connections have come.
                return Ok((pair, alone));
            }
            if let Some(xdp) = pair.xdp() {
                xdp.set_handover(false);
            }
            remove_ipvs_leftovers(runtime);
            Ok((pair, alone))
        }
        Attempt::Ipvs => {
            let plane = Ipvs::start(&dataplane.timeouts, runtime)?;
            match xdp::remove_leftovers(runtime) {
                Ok(true) => tracing::info!("removed the XDP program of an earlier lbd"),
                // Where no pin can be there is none.
                Ok(false) | Err(DataPlaneError::PinPath { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok((Pair::Ipvs(Box::new(plane)), Some(Alone::NoXdp)))
        }
    }
}

fn remove_ipvs_leftovers(runtime: &Runtime) {
    match ipvs::remove_leftovers(runtime) {
        Ok(true) => tracing::info!("removed what an earlier lbd left in IPVS"),
        Ok(false) => {}
        Err(error) => tracing::warn!(
            %error,
            "cannot remove what an earlier lbd left in IPVS; XDP goes before it"
        ),
    }
}

/// XDP, with IPVS beside it for the slow path alone, if the kernel has it already: `mode` permits no fallback.
fn with_slow_path(xdp: Box<Xdp>, config: &Config) -> (Pair, Alone) {
    let mode = config.dataplane.mode;
    let alone = |ipvs| Alone::Mode { mode, ipvs };
    let ipvs = ipvs::is_loaded().then(|| Ipvs::start(&config.dataplane.timeouts, &config.runtime));
    match ipvs {
        Some(Ok(ipvs)) => {
            let pair = Pair::Both {
                xdp,
                ipvs: Box::new(ipvs),
                forwarding: super::switching::Kind::Xdp,
            };
            (pair, alone(None))
        }
        Some(Err(error)) => {
            tracing::warn!(%error, "no slow path through IPVS for what XDP leaves to the kernel");
            (Pair::Xdp(xdp), alone(Some(error)))
        }
        None => (Pair::Xdp(xdp), alone(None)),
    }
}

/// XDP, with IPVS beside it if the kernel has it.
fn with_fallback(xdp: Box<Xdp>, config: &Config) -> (Pair, Option<Alone>) {
    match Ipvs::start(&config.dataplane.timeouts, &config.runtime) {
        Ok(ipvs) => {
            let pair = Pair::Both {
                xdp,
                ipvs: Box::new(ipvs),
                forwarding: super::switching::Kind::Xdp,
            };
            (pair, None)
        }
        Err(error) => {
            tracing::info!(reason = %error, "nothing would take over if XDP were lost");
            (Pair::Xdp(xdp), Some(Alone::NoIpvs(error)))
        }
    }
}

/// What to try in which order, and why.
fn attempts(config: &Config) -> Result<(Vec<Attempt>, String), DataPlaneError> {
    let lacks = |plane, find: &dyn Fn(&VirtualService) -> Option<String>| {
        let first = config
            .services
            .iter()
            .find_map(|service| Some((service.id.to_string(), find(service)?)));
        first.map(|(service, what)| (plane, service, what))
    };
    let in_xdp = lacks("XDP", &VirtualService::xdp_lacks);
    let in_ipvs = lacks("IPVS", &VirtualService::ipvs_lacks);
    order(
        config.dataplane.mode,
        config.dataplane.allow_generic,
        in_xdp,
        in_ipvs,
    )
}

/// What a data plane cannot do: its name, the service, what.
type Lack = Option<(&'static str, String, String)>;

fn order(
    mode: Mode,
    allow_generic: bool,
    in_xdp: Lack,
    in_ipvs: Lack,
) -> Result<(Vec<Attempt>, String), DataPlaneError> {
    let xdp = match allow_generic {
        true => Attempt::Xdp(Hook::Either),
        false => Attempt::Xdp(Hook::Native),
    };
    let only = |attempt, lack: Lack, name: &str| match lack {
        Some((plane, service, what)) => Err(DataPlaneError::Lacks {
            plane,
            service,
            what,
        }),
        None => Ok((vec![attempt], format!("mode = \"{name}\""))),
    };
    match mode {
        Mode::Ipvs => only(Attempt::Ipvs, in_ipvs, "ipvs"),
        Mode::Xdp => only(xdp, in_xdp, "xdp"),
        Mode::XdpGeneric => only(Attempt::Xdp(Hook::Generic), in_xdp, "xdp-generic"),
        Mode::Auto => match (in_xdp, in_ipvs) {
            (Some((plane, service, what)), Some(_)) => Err(DataPlaneError::Lacks {
                plane,
                service,
                what,
            }),
            (Some((_, service, what)), None) => {
                let reason = format!("mode = \"auto\", and {service} needs it: XDP has no {what}");
                Ok((vec![Attempt::Ipvs], reason))
            }
            (None, Some((_, service, what))) => {
                let reason = format!("mode = \"auto\", and {service} needs it: IPVS has no {what}");
                Ok((vec![xdp], reason))
            }
            (None, None) => {
                let mut attempts = vec![Attempt::Xdp(Hook::Native), Attempt::Ipvs];
                if allow_generic {
                    attempts.push(Attempt::Xdp(Hook::Either));
                }
                Ok((attempts, "mode = \"auto\"".to_owned()))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried() {
        use Attempt::{Ipvs, Xdp};
        use Hook::{Either, Generic, Native};
        let xdp_lacks = || Some(("XDP", "TCP 10.0.0.1:80".to_owned(), "nat".to_owned()));
        let ipvs_lacks = || Some(("IPVS", "TCP 10.0.0.1:1-9".to_owned(), "ranges".to_owned()));
        let of = |mode, generic, in_xdp, in_ipvs| {
            order(mode, generic, in_xdp, in_ipvs).map(|(attempts, _)| attempts)
        };
        let rows = [
            (Mode::Auto, false, None, None, vec![Xdp(Native), Ipvs]),
            (
                Mode::Auto,
                true,
                None,
                None,
                vec![Xdp(Native), Ipvs, Xdp(Either)],
            ),
            (Mode::Auto, true, xdp_lacks(), None, vec![Ipvs]),
            (Mode::Auto, true, None, ipvs_lacks(), vec![Xdp(Either)]),
            (Mode::Auto, false, None, ipvs_lacks(), vec![Xdp(Native)]),
            (Mode::Xdp, false, None, ipvs_lacks(), vec![Xdp(Native)]),
            (Mode::Xdp, true, None, None, vec![Xdp(Either)]),
            (Mode::XdpGeneric, false, None, None, vec![Xdp(Generic)]),
            (Mode::Ipvs, true, xdp_lacks(), None, vec![Ipvs]),
        ];
        for (mode, generic, in_xdp, in_ipvs, expected) in rows {
            assert_eq!(
                of(mode, generic, in_xdp, in_ipvs).unwrap(),
                expected,
                "{mode:?} {generic}"
            );
        }
        for mode in [Mode::Xdp, Mode::XdpGeneric] {
            assert!(of(mode, true, xdp_lacks(), None).is_err());
        }
        assert!(of(Mode::Ipvs, true, None, ipvs_lacks()).is_err());
        assert!(of(Mode::Auto, true, xdp_lacks(), ipvs_lacks()).is_err());
    }

    #[test]
    fn the_reason_names_who_needs_it() {
        let lack = Some(("XDP", "TCP 10.0.0.1:80".to_owned(), "nat".to_owned()));
        let (_, reason) = order(Mode::Auto, true, lack, None).unwrap();
        assert!(reason.contains("TCP 10.0.0.1:80 needs it"), "{reason}");
    }
}
