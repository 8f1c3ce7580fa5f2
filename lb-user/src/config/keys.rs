//! Keys of `auth_hmac` as they are written, in the configuration or in a file: `hex:` and digits, or the
//! bytes themselves. Pure.

use thiserror::Error;

/// The fewest bytes of a key. keepalived's bound: 128 bits of strength even against a quantum search.
pub const LEAST: usize = 32;
/// The most: one block of SHA-256. keepalived's bound.
pub const MOST: usize = 64;

/// Why something is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadKey {
    /// Not hexadecimal.
    #[error("an even number of hexadecimal digits must follow `hex:`")]
    NotHexadecimal,
    /// Not printable.
    #[error("a key without `hex:` is of printable ASCII characters")]
    NotPrintable,
    /// Too short, or too long.
    #[error("a key has {LEAST} to {MOST} bytes, this one has {0}")]
    Length(usize),
}

/// The bytes of a key.
pub fn parse(text: &str) -> Result<Vec<u8>, BadKey> {
    let bytes = match text.strip_prefix("hex:") {
        Some(digits) => hexadecimal(digits).ok_or(BadKey::NotHexadecimal)?,
        None => text.as_bytes().to_vec(),
    };
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(BadKey::NotPrintable);
    }
    match bytes.len() {
        LEAST..=MOST => Ok(bytes),
        length => Err(BadKey::Length(length)),
    }
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some(value(*high)? << 4 | value(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_what_is_none() {
        let hex = format!("hex:{}", "0f".repeat(32));
        assert_eq!(parse(&hex), Ok(vec![15; 32]));
        assert_eq!(parse(&"k".repeat(64)), Ok(vec![b'k'; 64]));
        for (text, why) in [
            ("hex:0f", BadKey::Length(1)),
            ("hex:0", BadKey::NotHexadecimal),
            ("hex:0g", BadKey::NotHexadecimal),
            ("too short", BadKey::Length(9)),
            (&"k".repeat(65), BadKey::Length(65)),
            (&"ä".repeat(32), BadKey::NotPrintable),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }
}
