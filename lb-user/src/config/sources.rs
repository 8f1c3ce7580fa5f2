//! Lists of sources: prefixes, one a line in a file. Pure.

use std::net::IpAddr;

use crate::model::IpPrefix;

/// A line that is no prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub number: usize,
    /// As it stands.
    pub text: String,
}

/// An address, or a network with its length and without host bits.
pub fn prefix(text: &str) -> Option<IpPrefix> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (number, bits) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let length = length.unwrap_or(bits);
    let host_bits = number.checked_shl(u32::from(length)).unwrap_or(0);
    (length <= bits && host_bits == 0).then_some(IpPrefix { address, length })
}

/// The prefixes of a file. Empty lines and what follows `#` do not count.
pub fn parse(text: &str) -> Result<Vec<IpPrefix>, BadLine> {
    let mut prefixes = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.split('#').next().unwrap_or_default().trim();
        if content.is_empty() {
            continue;
        }
        prefixes.push(prefix(content).ok_or_else(|| BadLine {
            number,
            text: content.to_owned(),
        })?);
    }
    Ok(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for good in [
            "192.0.2.0/24",
            "192.0.2.1",
            "0.0.0.0/0",
            "2001:db8::/32",
            "::/0",
            "::1",
        ] {
            assert!(prefix(good).is_some(), "{good}");
        }
        for bad in [
            "192.0.2.1/24",
            "192.0.2.0/33",
            "2001:db8::1/32",
            "::/129",
            "x",
            "1.2.3/8",
            "",
        ] {
            assert_eq!(prefix(bad), None, "{bad}");
        }
        assert_eq!(prefix("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
    }

    #[test]
    fn a_file_names_its_bad_line() {
        let text = "# office\n192.0.2.0/24\n\n2001:db8::/32  # lab\n";
        assert_eq!(parse(text).unwrap().len(), 2);
        let bad = parse("192.0.2.0/24\n192.0.2.77/24\n").unwrap_err();
        assert_eq!((bad.number, bad.text.as_str()), (2, "192.0.2.77/24"));
    }
}
