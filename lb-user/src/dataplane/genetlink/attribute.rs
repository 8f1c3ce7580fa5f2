//! Netlink attributes: length and type of two bytes each, the value, and zeroes up to four bytes
//! (include/uapi/linux/netlink.h). Numbers are in the host's order unless said otherwise. Pure.

use thiserror::Error;

/// Bytes before an attribute's value.
const HEADER: usize = 4;
/// Attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// Set in the type of an attribute that has attributes for a value (NLA_F_NESTED).
const NESTED: u16 = 0x8000;
/// What of the type is the type (NLA_TYPE_MASK).
const TYPE: u16 = 0x3fff;

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// A length is larger than what is there, or smaller than its own header.
    #[error("a message or attribute is cut off")]
    Truncated,
    /// A value has the wrong size for its type.
    #[error("attribute {0} has a wrong size")]
    Size(u16),
    /// What cannot be left out was left out.
    #[error("attribute {0} is missing")]
    Missing(u16),
    /// A value that means nothing.
    #[error("attribute {kind} has the value {value}, which means nothing")]
    Value {
        /// Type of the attribute.
        kind: u16,
        /// What it says.
        value: u32,
    },
}

/// `length` rounded up to where the next attribute begins.
pub const fn aligned(length: usize) -> usize {
    length.div_ceil(ALIGNMENT) * ALIGNMENT
}

/// Attributes one behind the other.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// A value as it is; longer ones than 16 bits can tell (65,531 bytes) are cut.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        let value = &value[..usize::from(length) - HEADER];
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// One byte.
    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    /// Two bytes.
    pub fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Two bytes in network order.
    pub fn put_be16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Four bytes.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Eight bytes.
    pub fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Text with the zero that ends it.
    pub fn put_text(&mut self, kind: u16, text: &str) {
        self.put(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// Attributes within an attribute.
    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.put(kind | NESTED, &inner.bytes);
    }
}

/// An attribute that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type without flags.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl Attribute<'_> {
    fn array<const N: usize>(&self) -> Result<[u8; N], CodecError> {
        <[u8; N]>::try_from(self.value).map_err(|_| CodecError::Size(self.kind))
    }

    /// One byte.
    pub fn u8(&self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&self) -> Result<u16, CodecError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Two bytes in network order.
    pub fn be16(&self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&self) -> Result<u32, CodecError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Eight bytes, or four: counters grew.
    pub fn u64(&self) -> Result<u64, CodecError> {
        match self.value.len() {
            4 => self.u32().map(u64::from),
            _ => self.array().map(u64::from_ne_bytes),
        }
    }

    /// Text up to its first zero. What is no UTF-8 in it is replaced.
    pub fn text(&self) -> String {
        let end = self.value.iter().position(|byte| *byte == 0);
        let text = &self.value[..end.unwrap_or(self.value.len())];
        String::from_utf8_lossy(text).into_owned()
    }
}

/// The attributes in `bytes`, up to the first that is cut off.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

/// See [`attributes`].
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken = take(self.rest);
        match taken {
            // The last one may lack its padding.
            Ok((_, length)) => self.rest = self.rest.get(aligned(length)..).unwrap_or_default(),
            Err(_) => self.rest = &[],
        }
        Some(taken.map(|(attribute, _)| attribute))
    }
}

fn take(bytes: &[u8]) -> Result<(Attribute<'_>, usize), CodecError> {
    let word = |at: usize| {
        let pair = bytes.get(at..at + 2).ok_or(CodecError::Truncated)?;
        <[u8; 2]>::try_from(pair)
            .map(u16::from_ne_bytes)
            .map_err(|_| CodecError::Truncated)
    };
    let (length, kind) = (usize::from(word(0)?), word(2)?);
    let value = bytes.get(HEADER..length).ok_or(CodecError::Truncated)?;
    let kind = kind & TYPE;
    Ok((Attribute { kind, value }, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(list in prop::collection::vec((0_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut writer = Writer::default();
            for (kind, value) in &list {
                writer.put(*kind, value);
            }
            let bytes = writer.finish();
            let read: Vec<_> = attributes(&bytes)
                .map(|a| a.map(|a| (a.kind, a.value.to_vec())).unwrap())
                .collect();
            prop_assert_eq!(read, list);
        }

        /// Reading ends, whatever it is given, and does not panic.
        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let count = attributes(&bytes).count();
            prop_assert!(count <= bytes.len());
        }
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 7, 7, 7, 7], &[4, 0, 1]] {
            let read: Vec<_> = attributes(bytes).collect();
            assert_eq!(read, [Err(CodecError::Truncated)], "{bytes:?}");
        }
    }
}
