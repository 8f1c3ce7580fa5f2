//! What a tracked file's content means. Pure.

/// Longer content is no number.
pub const LONGEST: usize = 64;

/// What was found at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// No file.
    Absent,
    /// The beginning of a file: at most one byte more than [`LONGEST`].
    Bytes(Vec<u8>),
    /// Something that cannot be read, and why.
    Unreadable(String),
}

/// State of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileState {
    value: i32,
    complaint: Option<String>,
}

impl FileState {
    /// The number in force: 0 while there is no file, and the last one while it holds none.
    pub fn value(&self) -> i32 {
        self.value
    }

    /// What is wrong with the file.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Takes what was found. An empty file is only wrong when it stays so, because most writers empty
    /// it first: `settled` says that nothing has changed for a while. Says whether anything is new.
    pub fn found(&mut self, content: &Content, settled: bool) -> bool {
        let new = match content {
            Content::Absent => Self::default(),
            Content::Bytes(bytes) if bytes.trim_ascii().is_empty() && !settled => return false,
            Content::Bytes(bytes) => match number(bytes) {
                Ok(value) => Self {
                    value,
                    complaint: None,
                },
                Err(complaint) => Self {
                    value: self.value,
                    complaint: Some(complaint),
                },
            },
            Content::Unreadable(error) => Self {
                value: self.value,
                complaint: Some(format!("cannot be read: {error}")),
            },
        };
        let is_new = new != *self;
        *self = new;
        is_new
    }
}

fn number(bytes: &[u8]) -> Result<i32, String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if bytes.len() > LONGEST {
        return Err("is too long for a number".to_owned());
    }
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    text.parse()
        .map_err(|_| format!("holds no whole number: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_over_time() {
        let bytes = |text: &str| Content::Bytes(text.as_bytes().to_vec());
        let long = bytes(&"1".repeat(65));
        let gone = Content::Absent;
        let denied = Content::Unreadable("no".into());
        // Found, settled; is it news, the number, what is wrong.
        let rows = [
            (&gone, true, false, 0, None),
            (&bytes("5\n"), false, true, 5, None),
            (&bytes(" 5 "), false, false, 5, None),
            (&bytes("-12"), false, true, -12, None),
            // Emptied before it is written anew.
            (&bytes(""), false, false, -12, None),
            (&bytes("\n"), false, false, -12, None),
            (&bytes("7"), false, true, 7, None),
            (&bytes(""), true, true, 7, Some("is empty")),
            (&bytes(""), true, false, 7, Some("is empty")),
            (
                &bytes("seven"),
                false,
                true,
                7,
                Some("holds no whole number: \"seven\""),
            ),
            (
                &bytes("seven"),
                true,
                false,
                7,
                Some("holds no whole number: \"seven\""),
            ),
            (
                &bytes("1.5"),
                false,
                true,
                7,
                Some("holds no whole number: \"1.5\""),
            ),
            (
                &bytes("8\n9\n"),
                false,
                true,
                7,
                Some("holds no whole number: \"8\\n9\""),
            ),
            (
                &bytes("2147483648"),
                false,
                true,
                7,
                Some("holds no whole number: \"2147483648\""),
            ),
            (&bytes("+2147483647"), false, true, i32::MAX, None),
            (
                &Content::Bytes(vec![0xff, 0x00]),
                false,
                true,
                i32::MAX,
                Some("holds no whole number: \"\u{fffd}\\0\""),
            ),
            (
                &long,
                false,
                true,
                i32::MAX,
                Some("is too long for a number"),
            ),
            (&denied, false, true, i32::MAX, Some("cannot be read: no")),
            (&gone, false, true, 0, None),
        ];
        let mut state = FileState::default();
        for (content, settled, is_new, value, complaint) in rows {
            assert_eq!(state.found(content, settled), is_new, "{content:?}");
            assert_eq!(
                (state.value(), state.complaint()),
                (value, complaint),
                "{content:?}"
            );
        }
    }
}
