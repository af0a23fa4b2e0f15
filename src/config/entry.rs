//! One entry of an option that is a list of groups: its keys are read one by one, and what nobody read is unknown.

use crate::config::file::Node;
use crate::config::sources::Problem;

/// An entry under examination.
pub struct ListEntry<'a> {
    at: String,
    values: Vec<(String, Node)>,
    known: Vec<&'static str>,
    problems: &'a mut Vec<Problem>,
    before: usize,
}

impl<'a> ListEntry<'a> {
    /// The entry at a place such as `auth.jwt_issuers[0]`. `None` if it is no group of keys.
    pub fn new(at: String, node: Node, problems: &'a mut Vec<Problem>) -> Option<ListEntry<'a>> {
        let before = problems.len();
        match node {
            Node::Map(values) => Some(ListEntry { at, values, known: Vec::new(), problems, before }),
            other => {
                problems.push(Problem::new(at, format!("must be a group of keys, not {}", other.kind())));
                None
            }
        }
    }

    /// Tells what is wrong with the value of a key.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(format!("{}.{key}", self.at), message));
    }

    /// The text of a key, if it is there.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Node::Text(text) if !text.is_empty() => Some(text),
            other => {
                self.problem(key, format!("must be text, not {}; put it in quotes", kind(&other)));
                None
            }
        }
    }

    /// The text of a key that must be there.
    pub fn required(&mut self, key: &'static str) -> Option<String> {
        let missing = !self.has(key);
        let text = self.text(key);
        if missing {
            self.problem(key, "is missing");
        }
        text
    }

    /// The texts of a key: a list, or one alone. `None` if it is not there.
    pub fn texts(&mut self, key: &'static str) -> Option<Vec<String>> {
        let items = match self.take(key)? {
            Node::List(items) => items,
            one => vec![one],
        };
        if items.is_empty() {
            self.problem(key, "must not be empty: nothing would fit");
        }
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Node::Text(text) if !text.is_empty() => texts.push(text),
                other => self.problem(key, format!("must hold text, not {}; put it in quotes", kind(&other))),
            }
        }
        Some(texts)
    }

    /// `true` or `false`; the latter if it is not there.
    pub fn flag(&mut self, key: &'static str) -> bool {
        match self.take(key) {
            None => false,
            Some(Node::Bool(value)) => value,
            Some(_) => {
                self.problem(key, "must be true or false");
                false
            }
        }
    }

    /// Whether a key stands there.
    pub fn has(&self, key: &str) -> bool {
        self.values.iter().any(|(other, node)| other == key && *node != Node::Null)
    }

    /// Tells of all keys that nobody has asked for. True if nothing at all was wrong with the entry.
    pub fn finish(mut self) -> bool {
        let known = self.known.join(", ");
        for (key, _) in std::mem::take(&mut self.values) {
            self.problem(&key, format!("unknown key; there are {known}"));
        }
        self.problems.len() == self.before
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let at = self.values.iter().position(|(other, _)| other == key)?;
        let (_, node) = self.values.remove(at);
        (node != Node::Null).then_some(node)
    }
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::Text(_) => "nothing",
        other => other.kind(),
    }
}
