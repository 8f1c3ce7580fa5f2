//! Single values: ranges, choices, addresses, names.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    time::Duration,
};

use super::Validator;
use crate::{
    config::{diagnostic::Diagnostic, reader::At},
    model::Prefix,
};

/// The longest time that makes sense anywhere.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

impl Validator<'_> {
    pub(super) fn choice<T: Copy>(
        &mut self,
        raw: Option<At<String>>,
        key: &str,
        default: T,
        known: &[(&str, T)],
    ) -> T {
        let Some(at) = raw else { return default };
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == at.value) {
            return *value;
        }
        let names: Vec<String> = known
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        self.error(
            &at.span,
            format!("`{key}` cannot be \"{}\"", at.value),
            &format!("this version has: {}", names.join(", ")),
        );
        default
    }

    pub(super) fn number(
        &mut self,
        raw: Option<At<i64>>,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        default: i64,
        also: impl FnOnce(&mut Here<'_, '_>, i64),
    ) -> i64 {
        let Some(at) = raw else { return default };
        if !range.contains(&at.value) {
            let message = format!("`{key}` is {}, which is out of range", at.value);
            self.error(
                &at.span,
                message,
                &format!("{} to {}", range.start(), range.end()),
            );
            return default;
        }
        also(
            &mut Here {
                errors: self.errors,
                span: &at.span,
            },
            at.value,
        );
        at.value
    }

    pub(super) fn small(
        &mut self,
        raw: Option<At<i64>>,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
        default: u8,
    ) -> u8 {
        let number = self.number(raw, key, range, i64::from(default), |_, _| {});
        u8::try_from(number).unwrap_or(default)
    }

    pub(super) fn duration(
        &mut self,
        raw: Option<At<Duration>>,
        key: &str,
        range: std::ops::RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(at) = raw else { return default };
        if !range.contains(&at.value) {
            let help = format!(
                "{} to {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end())
            );
            self.error(&at.span, format!("`{key}` is out of range"), &help);
        }
        at.value
    }

    pub(super) fn interface_name(&mut self, at: &At<String>) {
        // IFNAMSIZ is 16 with the final NUL; the kernel's dev_valid_name forbids the rest.
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if at.value.is_empty() || at.value.len() > 15 || at.value.contains(odd) {
            self.error(
                &at.span,
                format!("`{}` cannot be an interface name", at.value),
                "1 to 15 bytes without blank, / and :",
            );
        }
    }

    pub(super) fn ip(&mut self, at: &At<String>, key: &str) -> IpAddr {
        at.value.parse().unwrap_or_else(|_| {
            self.error(
                &at.span,
                format!("`{}` is not an IP address", at.value),
                &format!("`{key}` is written like \"10.1.15.45\" or \"2001:db8::45\""),
            );
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        })
    }

    /// An address with a prefix length; without one, the address alone.
    pub(super) fn prefix(&mut self, at: &At<String>) -> Prefix {
        let (address, length) = match at.value.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (at.value.as_str(), None),
        };
        let parsed = address.parse::<IpAddr>().ok().and_then(|address| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let length = length.map_or(Ok(most), str::parse).ok()?;
            (length <= most).then_some(Prefix { address, length })
        });
        if let Some(prefix) = parsed {
            match prefix.address {
                // The first address of an IPv6 instance is a link-local one.
                IpAddr::V6(v6) if v6.is_unicast_link_local() => {}
                address => self.unicast_ip(address, &at.span),
            }
            return prefix;
        }
        self.error(
            &at.span,
            format!("`{}` is not an IP address with a prefix length", at.value),
            "such as \"10.1.15.50/16\" or \"2001:db8::50/64\"",
        );
        Prefix {
            address: Ipv4Addr::UNSPECIFIED.into(),
            length: 32,
        }
    }

    pub(super) fn unicast_ip(&mut self, address: IpAddr, span: &Range<usize>) {
        let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().is_some();
        match address {
            IpAddr::V4(address) => self.unicast(address, span),
            IpAddr::V6(v6)
                if v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_loopback()
                    || v6.is_unicast_link_local()
                    || mapped(v6) =>
            {
                self.error(
                    span,
                    format!("{address} is not a unicast address of a network"),
                    "",
                );
            }
            IpAddr::V6(_) => {}
        }
    }

    pub(super) fn unicast(&mut self, address: Ipv4Addr, span: &Range<usize>) {
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_broadcast()
            || address.is_loopback()
        {
            self.error(
                span,
                format!("{address} is not a unicast address of a network"),
                "",
            );
        }
    }
}

/// Where a number stood, for checks beyond its range.
pub(super) struct Here<'e, 's> {
    errors: &'e mut Vec<Diagnostic>,
    span: &'s Range<usize>,
}

impl Here<'_, '_> {
    pub(super) fn error_here(&mut self, message: &str, help: &str) {
        self.errors.push(Diagnostic {
            span: self.span.clone(),
            message: message.to_owned(),
            help: Some(help.to_owned()),
        });
    }
}
