//! Reads one entry of a list option key by key, and reports every key that no reader asked for.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::config::file;
use crate::config::sources::Problem;

/// An entry that is being read.
pub struct ListEntry<'a> {
    at: String,
    values: Map<String, Value>,
    empty: EmptyKeys,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
    problems_before: usize,
}

/// Handling of keys without a value in an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum EmptyKeys {
    /// They count as not set.
    NotSet,
    /// They are an error.
    Rejected,
}

impl<'a> ListEntry<'a> {
    /// The entry at a path such as `auth.jwt_issuers[0]`. `None` and a problem if it is not a group of keys.
    pub fn new(at: String, node: Value, problems: &'a mut Vec<Problem>) -> Option<ListEntry<'a>> {
        let problems_before = problems.len();
        let (empty, known) = (EmptyKeys::NotSet, Vec::new());
        match node {
            Value::Object(values) => Some(ListEntry { at, values, empty, known, problems, problems_before }),
            other => {
                problems.push(Problem::new(at, format!("must be a group of keys, not {}", file::kind(&other))));
                None
            }
        }
    }

    /// The same entry, with this handling of keys without a value.
    pub fn with_empty_keys(self, empty: EmptyKeys) -> ListEntry<'a> {
        ListEntry { empty, ..self }
    }

    /// Reports a problem with the entry as a whole.
    pub fn problem_of_entry(&mut self, message: &str) {
        self.problems.push(Problem::new(self.at.clone(), message));
    }

    /// Reports a problem with the value of a key.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}.{key}", self.at), message));
    }

    /// The value of a key, parsed; `None` if the key is not set, or its value was reported.
    pub fn parse<T>(&mut self, key: &'static str, parse: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        let node = self.remove(key)?;
        parse(&node).map_err(|message| self.problem(key, message)).ok()
    }

    /// The text of a key; `None` if the key is not set, or its value was reported.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.parse(key, |node| match node {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            other => Err(format!("must be text, not {}; put it in quotes", kind(other))),
        })
    }

    /// The group of keys under a key, as an entry of its own.
    pub fn group(&mut self, key: &'static str) -> Option<ListEntry<'_>> {
        let node = self.remove(key)?;
        ListEntry::new(format!("{}.{key}", self.at), node, self.problems)
    }

    /// The text of a key that must be set.
    pub fn required(&mut self, key: &'static str) -> Option<String> {
        let missing = !self.has(key);
        let text = self.text(key);
        if missing {
            self.problem(key, "is missing");
        }
        text
    }

    /// The texts of a key: a list, or a single text. `None` if the key is not set.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let node = self.remove(key)?;
        Some(self.texts_of(key, node))
    }

    /// The same, parsed. Each text that is not valid is reported.
    pub fn parsed_texts<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let texts = self.texts(key)?;
        Some(texts.iter().filter_map(|text| parse(text).map_err(|message| self.problem(key, message)).ok()).collect())
    }

    /// The names and texts of a group of keys, each with a list of texts or a single one. Empty if the key is not set.
    pub fn groups_of_texts(&mut self, key: &'static str) -> Vec<(String, Vec<String>)> {
        match self.remove(key) {
            None => Vec::new(),
            Some(Value::Object(entries)) => {
                entries.into_iter().map(|(name, node)| (name, self.texts_of(key, node))).collect()
            }
            Some(other) => {
                self.problem(key, format!("must be a group of keys, not {}", file::kind(&other)));
                Vec::new()
            }
        }
    }

    fn texts_of(&mut self, key: &'static str, node: Value) -> Vec<String> {
        let items = match node {
            Value::Array(items) => items,
            one => vec![one],
        };
        if items.is_empty() {
            self.problem(key, "must not be empty: it would match nothing");
        }
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Value::String(text) if !text.is_empty() => texts.push(text),
                other => {
                    self.problem(key, format!("must contain text, not {}; put it in quotes", kind(&other)));
                }
            }
        }
        texts
    }

    /// `true` or `false`; `false` if the key is not set.
    pub fn flag(&mut self, key: &'static str) -> bool {
        self.parse(key, flag).unwrap_or(false)
    }

    /// A number; `None` if the key is not set, or its value was reported.
    pub fn number<T: FromStr>(&mut self, key: &'static str) -> Option<T> {
        let is_whole = "0.5".parse::<T>().is_err();
        let message = if is_whole { "must be a whole number, not negative" } else { "must be a number" };
        self.parse(key, |node| {
            let number = node.as_number().and_then(|number| file::number(number).parse().ok());
            number.ok_or_else(|| message.to_owned())
        })
    }

    /// Whether a key is set.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|node| !node.is_null())
    }

    /// Reports all keys that were not read. True if the entry has no problem at all.
    pub fn finish(mut self) -> bool {
        let known = self.known.join(", ");
        for (key, _) in std::mem::take(&mut self.values) {
            self.problem(&key, format!("unknown key; must be one of {known}"));
        }
        self.problems.len() == self.problems_before
    }

    /// The value of a key as it is; `None` if the key is not set.
    pub fn remove(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        let node = self.values.remove(key)?;
        (!node.is_null() || self.empty == EmptyKeys::Rejected).then_some(node)
    }
}

/// `true` or `false`.
pub fn flag(node: &Value) -> Result<bool, String> {
    node.as_bool().ok_or_else(|| "must be true or false".to_owned())
}

/// Only empty text is rejected by readers of text.
fn kind(node: &Value) -> &'static str {
    match node {
        Value::String(_) => "empty",
        other => file::kind(other),
    }
}
