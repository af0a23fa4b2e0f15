//! Parses the configuration file. Knows no option.

use std::io;
use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::base::input_file;

/// Reads and parses the file at `path`. The error is a sentence with the path and the line of a syntax error.
pub fn read(path: &Path) -> Result<Value, String> {
    let text = input_file::read_text(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => {
                "; correct the path (--config or TIMBR_GATEWAY_CONFIG), or create the file, which needs one line: \
                 upstream: {url: 'http://127.0.0.1:8000'}"
            }
            _ => "",
        };
        format!("cannot read the configuration file {}: {error}{hint}", path.display())
    })?;
    parse(&text).map_err(|error| format!("{}: not valid YAML: {error}", path.display()))
}

/// Parses a document. An empty one is an empty map. A key that occurs twice is an error.
pub fn parse(text: &str) -> Result<Value, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Object(Map::new()));
    }
    // YAML 1.1 has more booleans, such as y, on and off; only true and false are booleans here.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| strip_source(&error.to_string()))
}

/// The text of a number. A whole one has no point: `1e3` is `1000`.
pub fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => value.to_string(),
        _ => number.to_string(),
    }
}

/// The type of a node, for errors: "a list".
pub fn kind(node: &Value) -> &'static str {
    match node {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a group of keys",
    }
}

/// Parts of a parser error, and what to do about it.
const SYNTAX_REMEDIES: [(&str, &str); 9] = [
    ("tabs disallowed", "indent with spaces"),
    ("duplicate mapping key", "keep one of them"),
    ("multiple YAML documents", "remove the line `---` or `...` and one of the documents"),
    ("did not find expected key", "check the indentation of this line and of the one before it"),
    ("alias", "put a value that begins with `*` or `&` in quotes"),
    ("unexpected character: `@'", "put a value that begins with `@` in quotes"),
    ("did not find expected ',' or '}'", "close the `{`, or put a value that begins with it in quotes"),
    ("expected string scalar", "put a value that begins with `{` in quotes"),
    ("mapping values are not allowed", "put a value with `: ` in quotes, or check the indentation"),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_parsed_into_trees() {
        let tree = parse("a:\n  b: text\n  c: 7\n  d: true\n  e:\nf: [x, y]\n");
        let expected = json!({ "a": { "b": "text", "c": 7, "d": true, "e": null }, "f": ["x", "y"] });
        assert_eq!(tree, Ok(expected));
    }

    #[test]
    fn whole_numbers_have_no_point() {
        for (yaml, expected) in [("7", "7"), ("0123", "123"), ("1.0", "1"), ("1e3", "1000"), ("0.5", "0.5")] {
            let Ok(Value::Number(value)) = parse(yaml) else { panic!("{yaml}") };
            assert_eq!(number(&value), expected);
        }
        assert!(parse(".inf").is_err() && parse("1e999").is_err());
    }

    #[test]
    fn empty_documents_are_empty_maps() {
        for text in ["", "\n", "# only a comment\n"] {
            assert_eq!(parse(text), Ok(json!({})), "{text:?}");
        }
    }

    #[test]
    fn duplicate_keys_are_rejected() {
        let error = parse("a: 1\na: 2\n").expect_err("a duplicate");
        assert!(error.contains("line 2") && error.contains('a') && !error.contains("Options"), "{error}");
    }

    #[test]
    fn syntax_errors_name_the_line_and_quote_nothing() {
        let error = parse("upstream:\n  api_key: \"tk_secret\n").expect_err("unterminated");
        assert!(error.contains("line"), "{error}");
        assert!(!error.contains("tk_secret"), "{error}");
    }
}
