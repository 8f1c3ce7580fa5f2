//! Why there is no second data plane that may forward.

use std::fmt;

use crate::{dataplane::DataPlaneError, model::Mode};

/// Why only one may.
#[derive(Debug)]
pub enum Alone {
    /// The configuration permits no other one than XDP.
    Mode {
        /// What it says.
        mode: Mode,
        /// Why IPVS does not take the slow path either, if it is in the kernel.
        ipvs: Option<DataPlaneError>,
    },
    /// IPVS is not to be had.
    NoIpvs(DataPlaneError),
    /// IPVS was chosen, or XDP could not be had.
    NoXdp,
}

impl Alone {
    /// Where there is no second one, whether or not it is known why.
    pub fn words(alone: Option<&Self>) -> String {
        alone.map_or_else(
            || "there is no other data plane".to_owned(),
            ToString::to_string,
        )
    }

    /// Why IPVS does not take what XDP leaves to the kernel, where there is no IPVS beside it.
    pub fn no_slow_path(&self) -> String {
        match self {
            Alone::Mode { ipvs: None, .. } => {
                format!("{self}, and IPVS was not loaded at the start")
            }
            Alone::Mode {
                ipvs: Some(error), ..
            } => format!("{self}, and {error}"),
            Alone::NoIpvs(_) | Alone::NoXdp => self.to_string(),
        }
    }
}

impl fmt::Display for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alone::Mode { mode, .. } => {
                let named = Mode::ALL.iter().find(|(_, one)| one == mode);
                write!(f, "mode = \"{}\"", named.map_or("", |(name, _)| name))
            }
            Alone::NoIpvs(error) => error.fmt(f),
            Alone::NoXdp => f.write_str("XDP was not loaded at the start"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_there_is_one_and_no_slow_path() {
        let error = || DataPlaneError::NoneWorks("ip_vs".to_owned());
        let mode = |mode, ipvs| Alone::Mode { mode, ipvs };
        let error_text = error().to_string();
        for (alone, said, no_slow_path) in [
            (
                mode(Mode::Xdp, None),
                "mode = \"xdp\"",
                "mode = \"xdp\", and IPVS was not loaded at the start",
            ),
            (
                mode(Mode::XdpGeneric, Some(error())),
                "mode = \"xdp-generic\"",
                &format!("mode = \"xdp-generic\", and {error_text}"),
            ),
            (Alone::NoIpvs(error()), &error_text, &error_text),
        ] {
            assert_eq!(alone.to_string(), said);
            assert_eq!(alone.no_slow_path(), no_slow_path);
        }
    }
}
