//! One data plane, or two of which one forwards.

use super::Kind;
use crate::dataplane::{DataPlane, Repairs, ipvs::Ipvs, xdp::Xdp};

/// What there is.
pub enum Pair {
    /// XDP alone.
    Xdp(Box<Xdp>),
    /// IPVS alone.
    Ipvs(Box<Ipvs>),
    /// Both.
    Both {
        /// XDP, loaded whether it forwards or not.
        xdp: Box<Xdp>,
        /// IPVS, which holds nothing in the kernel but the slow path while it does not forward.
        ipvs: Box<Ipvs>,
        /// Which one forwards.
        forwarding: Kind,
    },
}

impl Pair {
    /// Which one forwards.
    pub const fn forwarding(&self) -> Kind {
        match self {
            Pair::Xdp(_) => Kind::Xdp,
            Pair::Ipvs(_) => Kind::Ipvs,
            Pair::Both { forwarding, .. } => *forwarding,
        }
    }

    /// The other one forwards from now on, if there is another.
    pub const fn turn_to(&mut self, kind: Kind) {
        if let Pair::Both { forwarding, .. } = self {
            *forwarding = kind;
        }
    }

    /// The one that forwards.
    pub fn active(&self) -> &dyn DataPlane {
        match self {
            Pair::Xdp(xdp)
            | Pair::Both {
                xdp,
                forwarding: Kind::Xdp,
                ..
            } => xdp.as_ref(),
            Pair::Ipvs(ipvs) | Pair::Both { ipvs, .. } => ipvs.as_ref(),
        }
    }

    /// The one that forwards, to be changed.
    pub fn active_mut(&mut self) -> &mut dyn DataPlane {
        match self {
            Pair::Xdp(xdp)
            | Pair::Both {
                xdp,
                forwarding: Kind::Xdp,
                ..
            } => xdp.as_mut(),
            Pair::Ipvs(ipvs) | Pair::Both { ipvs, .. } => ipvs.as_mut(),
        }
    }

    /// The one that brings health checks to VIPs: XDP's classifiers do so whichever forwards.
    pub fn probing(&self) -> &dyn DataPlane {
        match self {
            Pair::Xdp(xdp) | Pair::Both { xdp, .. } => xdp.as_ref(),
            Pair::Ipvs(ipvs) => ipvs.as_ref(),
        }
    }

    /// Every one that there is.
    pub fn all(&mut self) -> impl Iterator<Item = &mut dyn DataPlane> {
        let (xdp, ipvs) = match self {
            Pair::Xdp(xdp) => (Some(xdp), None),
            Pair::Ipvs(ipvs) => (None, Some(ipvs)),
            Pair::Both { xdp, ipvs, .. } => (Some(xdp), Some(ipvs)),
        };
        let xdp = xdp.map(|xdp| xdp.as_mut() as &mut dyn DataPlane);
        let ipvs = ipvs.map(|ipvs| ipvs.as_mut() as &mut dyn DataPlane);
        xdp.into_iter().chain(ipvs)
    }

    /// XDP, if it is loaded.
    pub fn xdp(&mut self) -> Option<&mut Xdp> {
        match self {
            Pair::Xdp(xdp) | Pair::Both { xdp, .. } => Some(xdp),
            Pair::Ipvs(_) => None,
        }
    }

    /// IPVS, if the kernel has it.
    pub fn ipvs(&mut self) -> Option<&mut Ipvs> {
        match self {
            Pair::Ipvs(ipvs) | Pair::Both { ipvs, .. } => Some(ipvs),
            Pair::Xdp(_) => None,
        }
    }

    /// What others changed in IPVS and was changed back.
    pub fn repairs(&self) -> Repairs {
        match self {
            Pair::Xdp(_) => Repairs::default(),
            Pair::Ipvs(ipvs) | Pair::Both { ipvs, .. } => ipvs.repairs().clone(),
        }
    }

    /// Both, if there are two.
    pub fn both(&mut self) -> Option<(&mut Xdp, &mut Ipvs)> {
        match self {
            Pair::Both { xdp, ipvs, .. } => Some((xdp, ipvs)),
            Pair::Xdp(_) | Pair::Ipvs(_) => None,
        }
    }
}
