//! Parses the configuration file into a tree of YAML nodes. Knows no option.

use std::fmt;
use std::io;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use crate::base::remedy::with_remedy;

/// A node of a YAML document.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`, `~` or an empty value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// The text of a number after YAML parsed it: `0123` is `123`.
    Number(String),
    /// A string.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// Keys and values as listed in the file.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Reads and parses the file at `path`. The error is a sentence with the path and the line of a syntax error.
    pub fn read(path: &Path) -> Result<Node, String> {
        let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; correct the path (--config or TIMBR_GATEWAY_CONFIG), or create the file, which needs one line: \
                     upstream: {url: 'http://127.0.0.1:8000'}"
                }
                _ => "",
            };
            format!("cannot read the configuration file {}: {}{hint}", path.display(), with_remedy(error))
        })?;
        Node::parse(&text).map_err(|error| format!("{}: not valid YAML: {error}", path.display()))
    }

    /// Parses a document. An empty one is an empty map.
    pub fn parse(text: &str) -> Result<Node, String> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Node::Map(Vec::new()));
        }
        // YAML 1.1 has more booleans, such as y, on and off; only true and false are booleans here.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| strip_source(&error.to_string()))
    }

    /// The node in flow style on one line; [`Node::parse`] accepts it.
    pub fn to_flow(&self) -> String {
        // A JSON string is a valid double-quoted YAML string.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let joined = |items: Vec<String>| items.join(", ");
        match self {
            Node::Null => "~".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Number(number) => number.clone(),
            Node::Text(text) => quoted(text),
            Node::List(items) => format!("[{}]", joined(items.iter().map(Node::to_flow).collect())),
            Node::Map(entries) => {
                let entry = |(key, node): &(String, Node)| format!("{}: {}", quoted(key), node.to_flow());
                format!("{{{}}}", joined(entries.iter().map(entry).collect()))
            }
        }
    }

    /// The node as JSON. A number that JSON cannot represent becomes a string.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Node::Null => serde_json::Value::Null,
            Node::Bool(value) => (*value).into(),
            Node::Number(number) => serde_json::from_str(number).unwrap_or_else(|_| number.as_str().into()),
            Node::Text(text) => text.as_str().into(),
            Node::List(items) => items.iter().map(Node::to_json).collect(),
            Node::Map(entries) => entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect(),
        }
    }

    /// The type of the node, for errors: "a list".
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Null => "empty",
            Node::Bool(_) => "true or false",
            Node::Number(_) => "a number",
            Node::Text(_) => "text",
            Node::List(_) => "a list",
            Node::Map(_) => "a group of keys",
        }
    }
}

/// Parts of a parser error, and what to do about it.
const SYNTAX_REMEDIES: [(&str, &str); 4] = [
    ("tabs disallowed", "indent with spaces"),
    ("duplicate mapping key", "keep one of them"),
    ("multiple YAML documents", "remove the line `---` and one of the documents"),
    ("did not find expected key", "check the indentation of this line and of the one before it"),
];

/// The first line of a parser error with advice for operators in place of that for programmers. The other lines quote
/// the file, which can contain secrets.
fn strip_source(report: &str) -> String {
    let line = report.lines().next().unwrap_or("unreadable");
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let advice = [", set ", "; use ", ", use "].into_iter().filter_map(|start| line.find(start)).min();
    let line = &line[..advice.unwrap_or(line.len())];
    match SYNTAX_REMEDIES.iter().find(|(part, _)| line.contains(part)) {
        Some((_, remedy)) => format!("{line}; {remedy}"),
        None => line.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, Node)> = Vec::new();
        while let Some((key, value)) = entries.next_entry::<String, Node>()? {
            if map.iter().any(|(other, _)| *other == key) {
                return Err(A::Error::custom(format!("duplicate key {key}")));
            }
            map.push((key, value));
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_parsed_into_trees() {
        let tree = Node::parse("a:\n  b: text\n  c: 7\n  d: true\n  e:\nf: [x, y]\n").expect("valid");
        let text = |text: &str| Node::Text(text.into());
        assert_eq!(
            tree,
            Node::Map(vec![
                (
                    "a".into(),
                    Node::Map(vec![
                        ("b".into(), text("text")),
                        ("c".into(), Node::Number("7".into())),
                        ("d".into(), Node::Bool(true)),
                        ("e".into(), Node::Null),
                    ])
                ),
                ("f".into(), Node::List(vec![text("x"), text("y")])),
            ])
        );
    }

    #[test]
    fn empty_documents_are_empty_maps() {
        for text in ["", "\n", "# only a comment\n"] {
            assert_eq!(Node::parse(text), Ok(Node::Map(Vec::new())), "{text:?}");
        }
    }

    #[test]
    fn duplicate_keys_are_rejected() {
        let error = Node::parse("a: 1\na: 2\n").expect_err("a duplicate");
        assert!(error.contains("line 2") && error.contains('a') && !error.contains("Options"), "{error}");
    }

    #[test]
    fn syntax_errors_name_the_line_and_quote_nothing() {
        let error = Node::parse("upstream:\n  api_key: \"tk_secret\n").expect_err("unterminated");
        assert!(error.contains("line"), "{error}");
        assert!(!error.contains("tk_secret"), "{error}");
    }
}
