//! Recognizes the statement `SHOW TOKEN`, which returns the key of the user who sends it.
//!
//! SECURITY: what cannot be read could be that statement, so it is `Possible`. The text of statements is compared as
//! the backend may fold it: `ſ` and the Kelvin sign become `s` and `k` there.

use crate::http::statement::sql::{self, Classified};
use crate::http::statement::{JsonQuery, StatementClass, StatementFormat, read_object, thrift};

/// Whether a body asks for the user's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRequest {
    /// It does not.
    No,
    /// It may, or it cannot be read.
    Possible,
    /// It is exactly this statement.
    Certain,
}

impl TokenRequest {
    /// Reads a body. `body` must be complete.
    pub fn read(format: StatementFormat, body: &[u8]) -> TokenRequest {
        match format {
            StatementFormat::Sql => std::str::from_utf8(body).map_or(TokenRequest::Possible, in_statement),
            StatementFormat::Json => {
                read_object::<JsonQuery<'_>>(body).map_or(TokenRequest::Possible, |json| in_statement(&json.query))
            }
            StatementFormat::Thrift if thrift::is_session_call(body) => TokenRequest::No,
            StatementFormat::Thrift => thrift::statement(body).map_or(TokenRequest::Possible, in_statement),
            StatementFormat::Mcp => match serde_json::from_slice::<serde_json::Value>(body) {
                Ok(message) if !has_token_request(&message) => TokenRequest::No,
                _ => TokenRequest::Possible,
            },
        }
    }
}

fn in_statement(text: &str) -> TokenRequest {
    let Classified { class, normalized } = sql::classify(text);
    match class {
        // The words may be anywhere, in any sequence: it is not known what is a comment or a literal.
        StatementClass::Unknown => {
            let text = fold(text);
            let is_plain = !text.contains(|c: char| c.is_control() && !c.is_whitespace());
            // A variable of Hive and Spark can have any value.
            if is_plain && !text.contains("${") && !(text.contains("show") && text.contains("token")) {
                TokenRequest::No
            } else {
                TokenRequest::Possible
            }
        }
        StatementClass::Show if normalized == "SHOW TOKEN " => TokenRequest::Certain,
        _ if has_adjacent_words(&fold(&normalized)) => TokenRequest::Possible,
        _ => TokenRequest::No,
    }
}

/// Whether a text in a message asks for the key. Most of them are prose, in which the words alone mean nothing.
fn has_token_request(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => {
            let Classified { normalized, .. } = sql::classify(text);
            has_adjacent_words(&fold(text)) || has_adjacent_words(&fold(&normalized))
        }
        serde_json::Value::Array(values) => values.iter().any(has_token_request),
        serde_json::Value::Object(members) => members.values().any(has_token_request),
        _ => false,
    }
}

fn fold(text: &str) -> String {
    let fold = |character| match character {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    text.chars().map(fold).collect()
}

/// Whether `show` is followed by `token`, with quotes or blanks between.
fn has_adjacent_words(folded: &str) -> bool {
    let mut words = folded.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let mut previous = "";
    words.any(|word| std::mem::replace(&mut previous, word) == "show" && word.starts_with("token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenRequest::{Certain, No, Possible};

    #[test]
    fn statements_in_sql() {
        for (text, expected) in [
            ("SHOW TOKEN", Certain),
            (" show /* my */ Token ;\n", Certain),
            ("(SHOW TOKEN)", Possible),
            ("SHOW `token`", Possible),
            ("SHOW TOKEN FOR bob", Possible),
            ("EXPLAIN SHOW TOKEN", Possible),
            ("SELECT * FROM (SHOW TOKEN)", Possible),
            ("SELECT 1; SHOW TOKEN", Possible),
            ("/*! SHOW TOKEN */", Possible),
            ("\u{17f}HOW TO\u{212a}EN", Possible),
            ("SHOW\u{a0}TOKEN", Possible),
            ("S\0H\0O\0W\0", Possible),
            ("${q}", Possible),
            ("SHOW TABLES", No),
            ("SELECT token FROM show", No),
            ("SELECT 'SHOW TOKEN'", No),
            ("SELECT show_token FROM t", No),
            ("CALL p('\\'')", No),
            ("", No),
        ] {
            assert_eq!(TokenRequest::read(StatementFormat::Sql, text.as_bytes()), expected, "{text}");
        }
        assert_eq!(TokenRequest::read(StatementFormat::Sql, b"SELECT '\xff'"), Possible, "not UTF-8");
    }

    #[test]
    fn statements_in_other_formats() {
        for (format, body, expected) in [
            (StatementFormat::Json, r#"{"query": "\u0053HOW TOKEN", "ontology_name": "system_db"}"#, Certain),
            (StatementFormat::Json, r#"{"query": "SELECT 1", "query": "x"}"#, Possible),
            (StatementFormat::Json, "{}", Possible),
            (StatementFormat::Json, r#"["SHOW TOKEN", "system_db"]"#, Possible),
            (StatementFormat::Json, r#"{"query": "SELECT 1"}"#, No),
            (StatementFormat::Thrift, "SELECT 1", Possible),
            (
                StatementFormat::Mcp,
                r#"{"method":"tools/call","params":{"arguments":{"q":"show  \u0054oken"}}}"#,
                Possible,
            ),
            (StatementFormat::Mcp, r#"[{"a":{"q":"SHOW/*x*/TOKEN"}}]"#, Possible),
            (StatementFormat::Mcp, r#"{"params":{"arguments":{"prompt":"Show me the price of this token"}}}"#, No),
            (StatementFormat::Mcp, "{", Possible),
        ] {
            assert_eq!(TokenRequest::read(format, body.as_bytes()), expected, "{body}");
        }
    }
}
