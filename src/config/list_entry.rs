//! Reads one entry of a list option key by key, and reports every key that no reader asked for.

use std::str::FromStr;

use crate::config::file::Node;
use crate::config::sources::Problem;

/// An entry that is being read.
pub struct ListEntry<'a> {
    at: String,
    values: Vec<(String, Node)>,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
    problems_before: usize,
}

impl<'a> ListEntry<'a> {
    /// The entry at a path such as `auth.jwt_issuers[0]`. `None` and a problem if it is not a group of keys.
    pub fn new(at: String, node: Node, problems: &'a mut Vec<Problem>) -> Option<ListEntry<'a>> {
        let problems_before = problems.len();
        match node {
            Node::Map(values) => Some(ListEntry { at, values, known: Vec::new(), problems, problems_before }),
            other => {
                problems.push(Problem::new(at, format!("must be a group of keys, not {}", other.kind())));
                None
            }
        }
    }

    /// Reports a problem with the value of a key.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}.{key}", self.at), message));
    }

    /// The text of a key; `None` if the key is not set, or its value was reported.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.remove(key)? {
            Node::Text(text) if !text.is_empty() => Some(text),
            other => {
                self.problem(key, format!("must be text, not {}; put it in quotes", kind(&other)));
                None
            }
        }
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

    /// The names and texts of a group of keys, each with a list of texts or a single one. Empty if the key is not set.
    pub fn groups_of_texts(&mut self, key: &'static str) -> Vec<(String, Vec<String>)> {
        match self.remove(key) {
            None => Vec::new(),
            Some(Node::Map(entries)) => {
                entries.into_iter().map(|(name, node)| (name, self.texts_of(key, node))).collect()
            }
            Some(other) => {
                self.problem(key, format!("must be a group of keys, not {}", other.kind()));
                Vec::new()
            }
        }
    }

    fn texts_of(&mut self, key: &'static str, node: Node) -> Vec<String> {
        let items = match node {
            Node::List(items) => items,
            one => vec![one],
        };
        if items.is_empty() {
            self.problem(key, "must not be empty: it would match nothing");
        }
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Node::Text(text) if !text.is_empty() => texts.push(text),
                other => {
                    self.problem(key, format!("must contain text, not {}; put it in quotes", kind(&other)));
                }
            }
        }
        texts
    }

    /// `true` or `false`; `false` if the key is not set.
    pub fn flag(&mut self, key: &'static str) -> bool {
        match self.remove(key) {
            None => false,
            Some(Node::Bool(value)) => value,
            Some(_) => {
                self.problem(key, "must be true or false");
                false
            }
        }
    }

    /// A number; `None` if the key is not set, or its value was reported.
    pub fn number<T: FromStr>(&mut self, key: &'static str) -> Option<T> {
        let number = match self.remove(key)? {
            Node::Number(text) => text.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            let is_whole = "0.5".parse::<T>().is_err();
            self.problem(key, if is_whole { "must be a whole number, not negative" } else { "must be a number" });
        }
        number
    }

    /// Whether a key is set.
    pub fn has(&self, key: &str) -> bool {
        self.values.iter().any(|(other, node)| other == key && *node != Node::Null)
    }

    /// Reports all keys that were not read. True if the entry has no problem at all.
    pub fn finish(mut self) -> bool {
        let known = self.known.join(", ");
        for (key, _) in std::mem::take(&mut self.values) {
            self.problem(&key, format!("unknown key; must be one of {known}"));
        }
        self.problems.len() == self.problems_before
    }

    fn remove(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let at = self.values.iter().position(|(other, _)| other == key)?;
        let (_, node) = self.values.remove(at);
        (node != Node::Null).then_some(node)
    }
}

/// Only empty text is rejected by readers of text.
fn kind(node: &Node) -> &'static str {
    match node {
        Node::Text(_) => "empty",
        other => other.kind(),
    }
}
