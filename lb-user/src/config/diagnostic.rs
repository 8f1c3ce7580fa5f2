//! Configuration errors with file, line, column, the line itself and a suggestion.

use std::{fmt, ops::Range};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Byte range in the file.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with a file, in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    text: String,
    width: usize,
    message: String,
    help: Option<String>,
}

impl ConfigError {
    pub(super) fn new(file: &str, text: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|d| (d.span.start, d.span.end));
        let places = diagnostics.into_iter().map(|d| place(text, d)).collect();
        Self {
            file: file.to_owned(),
            places,
        }
    }
}

fn place(text: &str, diagnostic: Diagnostic) -> Place {
    let start = (0..=diagnostic.span.start.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or("");
    let column = text[line_start..start].chars().count() + 1;
    let rest = line.chars().count().saturating_sub(column - 1);
    Place {
        line: before.matches('\n').count() + 1,
        column,
        text: line.to_owned(),
        width: diagnostic.span.len().clamp(1, rest.max(1)),
        message: diagnostic.message,
        help: diagnostic.help,
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.places {
            writeln!(
                f,
                "{}:{}:{}: {}",
                self.file, place.line, place.column, place.message
            )?;
            let number = place.line.to_string();
            let gutter = " ".repeat(number.len());
            writeln!(f, " {number} | {}", place.text)?;
            let indent: String = place
                .text
                .chars()
                .take(place.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            writeln!(f, " {gutter} | {indent}{}", "^".repeat(place.width))?;
            if let Some(help) = &place.help {
                writeln!(f, " {gutter} = help: {help}")?;
            }
        }
        let count = self.places.len();
        write!(
            f,
            "{}: {count} error{}",
            self.file,
            if count == 1 { "" } else { "s" }
        )
    }
}

impl std::error::Error for ConfigError {}
