//! Takes typed, spanned values out of a TOML table, collects every error, and names the keys that
//! nobody asked for.

use std::{ops::Range, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::Diagnostic;

/// A value and where it stood.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// The keys of one table that were not taken yet.
pub struct Fields<'d, 'i> {
    name: &'static str,
    span: Range<usize>,
    left: Vec<(
        &'d Spanned<std::borrow::Cow<'i, str>>,
        &'d Spanned<DeValue<'i>>,
    )>,
    known: Vec<&'static str>,
    given: Vec<&'static str>,
    errors: &'d mut Vec<Diagnostic>,
}

impl<'d, 'i> Fields<'d, 'i> {
    pub fn new(
        name: &'static str,
        span: Range<usize>,
        table: &'d DeTable<'i>,
        errors: &'d mut Vec<Diagnostic>,
    ) -> Self {
        Self {
            name,
            span,
            left: table.iter().collect(),
            known: Vec::new(),
            given: Vec::new(),
            errors,
        }
    }

    pub fn string(&mut self, key: &'static str) -> Option<At<String>> {
        self.take(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn integer(&mut self, key: &'static str) -> Option<At<i64>> {
        self.take(key, "an integer", |value| {
            let number = value.as_integer()?;
            i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
        })
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<At<bool>> {
        self.take(key, "true or false", DeValue::as_bool)
    }

    /// A duration is a string with a unit: "1s", "250ms".
    pub fn duration(&mut self, key: &'static str) -> Option<At<Duration>> {
        let expected = "a duration with its unit, such as \"1s\" or \"250ms\"";
        self.take(key, expected, |value| {
            humantime::parse_duration(value.as_str()?).ok()
        })
    }

    pub fn strings(&mut self, key: &'static str) -> Option<At<Vec<At<String>>>> {
        self.take(key, "a list of strings", |value| {
            value
                .as_array()?
                .iter()
                .map(|item| {
                    let value = item.get_ref().as_str()?.to_owned();
                    Some(At {
                        value,
                        span: item.span(),
                    })
                })
                .collect()
        })
    }

    /// An integer, a string, or a list of them, all as text.
    pub fn words(&mut self, key: &'static str) -> Option<At<Vec<At<String>>>> {
        let word = |item: &Spanned<DeValue<'i>>| {
            let value = match item.get_ref() {
                DeValue::Integer(number) => number.as_str().to_owned(),
                other => other.as_str()?.to_owned(),
            };
            let span = item.span();
            Some(At { value, span })
        };
        let value = self.remove(key)?;
        let words = match value.get_ref().as_array() {
            Some(items) => items.iter().map(word).collect(),
            None => word(value).map(|word| vec![word]),
        };
        match words {
            Some(words) => Some(At {
                value: words,
                span: value.span(),
            }),
            None => {
                self.wrong_type(key, value, "a number, a string, or a list of them");
                None
            }
        }
    }

    /// A list whose items are strings, taken by `of_string`, or tables, read with `read`.
    pub fn mixed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        of_string: impl Fn(At<String>) -> T,
        read: impl Fn(&mut Fields<'_, 'i>) -> T,
    ) -> Option<At<Vec<At<T>>>> {
        let value = self.remove(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, expected);
            return None;
        };
        let mut all = Vec::with_capacity(items.len());
        for item in items {
            let span = item.span();
            let value = match item.get_ref() {
                DeValue::String(text) => of_string(At {
                    value: text.to_string(),
                    span: span.clone(),
                }),
                DeValue::Table(table) => {
                    let mut fields = Fields::new(key, span.clone(), table, self.errors);
                    let value = read(&mut fields);
                    fields.finish();
                    value
                }
                _ => {
                    self.wrong_type(key, item, expected);
                    continue;
                }
            };
            all.push(At { value, span });
        }
        Some(At {
            value: all,
            span: value.span(),
        })
    }

    /// A program with its arguments: a list, or one string that is split as a shell would, quotes
    /// and backslashes included, without running one.
    pub fn command(&mut self, key: &'static str) -> Option<At<Vec<String>>> {
        self.take(
            key,
            "a command: a string, or a list of program and arguments",
            |value| {
                let words = match value {
                    DeValue::String(text) => shell_words::split(text).ok()?,
                    DeValue::Array(items) => items
                        .iter()
                        .map(|item| item.get_ref().as_str().map(str::to_owned))
                        .collect::<Option<Vec<_>>>()?,
                    _ => return None,
                };
                (!words.is_empty()).then_some(words)
            },
        )
    }

    /// Reads a table with `read`.
    pub fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'_, 'i>) -> T,
    ) -> Option<At<T>> {
        let value = self.remove(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(key, value, "a table");
            return None;
        };
        let mut fields = Fields::new(key, value.span(), table, self.errors);
        let read = read(&mut fields);
        fields.finish();
        Some(At {
            value: read,
            span: value.span(),
        })
    }

    /// Reads every table of an array of tables (`[[key]]`) with `read`.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Fields<'_, 'i>) -> T,
    ) -> Vec<At<T>> {
        let Some(value) = self.remove(key) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "an array of tables, written [[...]]");
            return Vec::new();
        };
        let mut all = Vec::with_capacity(items.len());
        for item in items {
            let Some(table) = item.get_ref().as_table() else {
                self.wrong_type(key, item, "a table");
                continue;
            };
            let mut fields = Fields::new(key, item.span(), table, self.errors);
            let value = read(&mut fields);
            fields.finish();
            all.push(At {
                value,
                span: item.span(),
            });
        }
        all
    }

    /// Reads one table (`[key]`) or each of an array of them (`[[key]]`) with `read`.
    pub fn one_or_more<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Fields<'_, 'i>) -> T,
    ) -> Vec<At<T>> {
        let is_table =
            |(name, value): &(&Spanned<std::borrow::Cow<'i, str>>, &Spanned<DeValue<'i>>)| {
                name.get_ref() == key && value.get_ref().is_table()
            };
        if self.left.iter().any(is_table) {
            self.table(key, read).into_iter().collect()
        } else {
            self.tables(key, read)
        }
    }

    /// Whether the key stood in the table, with a value of the right type or not.
    pub fn was_given(&self, key: &str) -> bool {
        self.given.contains(&key)
    }

    /// Reports a key that must be there.
    pub fn missing(&mut self, key: &'static str, help: &str) {
        self.errors.push(Diagnostic {
            span: self.span.clone(),
            message: format!("`{}` needs `{key}`", self.name),
            help: Some(help.to_owned()),
        });
    }

    /// Reports the keys that nobody took.
    pub fn finish(self) {
        for (key, _) in self.left {
            let name = key.get_ref().as_ref();
            let help = self
                .known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(known, name), *known))
                .filter(|(distance, _)| *distance <= 3.min(name.len() / 2 + 1))
                .min()
                .map_or_else(
                    || format!("known keys: {}", self.known.join(", ")),
                    |(_, known)| format!("did you mean `{known}`?"),
                );
            self.errors.push(Diagnostic {
                span: key.span(),
                message: format!("unknown key `{name}` in `{}`", self.name),
                help: Some(help),
            });
        }
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&DeValue<'i>) -> Option<T>,
    ) -> Option<At<T>> {
        let value = self.remove(key)?;
        match convert(value.get_ref()) {
            Some(converted) => Some(At {
                value: converted,
                span: value.span(),
            }),
            None => {
                self.wrong_type(key, value, expected);
                None
            }
        }
    }

    fn remove(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'i>>> {
        self.known.push(key);
        let index = self
            .left
            .iter()
            .position(|(name, _)| name.get_ref() == key)?;
        self.given.push(key);
        Some(self.left.swap_remove(index).1)
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue<'i>>, expected: &str) {
        self.errors.push(Diagnostic {
            span: value.span(),
            message: format!("`{key}` must be {expected}"),
            help: Some(format!("found {}", value.get_ref().type_str())),
        });
    }
}
