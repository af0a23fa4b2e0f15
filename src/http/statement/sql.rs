//! Classifies one SQL statement by its keywords, and replaces its literals. It is a tokenizer, not a parser: dialects
//! differ, and the backend has its own.
//!
//! SECURITY: rules allow statements by their class, so a text that two dialects could read differently is `Unknown`: a
//! backslash before a quote, nested or executable comments, a second statement. `sqlparser` has a tokenizer for each
//! dialect, but it decides such questions by its dialect, and allocates a string for each token.

use crate::http::statement::StatementClass::{self, Admin, Read, Show, Unknown, Write};

/// The class of a statement, and its text without literals and comments.
#[derive(Debug, PartialEq, Eq)]
pub struct Classified {
    pub class: StatementClass,
    /// Words in upper case, literals as `?`, a list of literals as one. Empty if the class is `Unknown`.
    pub normalized: String,
}

/// Classifies a complete text.
pub fn classify(text: &str) -> Classified {
    match normalize(text) {
        Some((class, normalized)) if class != Unknown => Classified { class, normalized },
        _ => Classified { class: Unknown, normalized: String::new() },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A keyword, or a name without quotes.
    Word(&'a str),
    /// A name in quotes. A text in `"` is a literal in some dialects.
    QuotedName(&'a str),
    /// A string or a number.
    Literal,
    Symbol(u8),
    /// The end of the statement.
    Semicolon,
}

/// `None` if the text is ambiguous.
fn normalize(text: &str) -> Option<(StatementClass, String)> {
    let mut classifier = Classifier::default();
    let mut normalized = String::new();
    let mut tokens = Tokens { text, position: 0 };
    let mut is_ended = false;
    while let Some(token) = tokens.next_token()? {
        if token == Token::Semicolon {
            is_ended = true;
            continue;
        }
        if is_ended {
            return None;
        }
        classifier.take(token);
        push(&mut normalized, token);
    }
    Some((classifier.class?, normalized))
}

fn push(normalized: &mut String, token: Token<'_>) {
    // A list of literals has the same shape whatever its length.
    if token == Token::Literal && normalized.ends_with("? , ") {
        normalized.truncate(normalized.len() - 2);
        return;
    }
    match token {
        Token::Word(word) => normalized.extend(word.chars().map(|character| character.to_ascii_uppercase())),
        Token::QuotedName(name) => normalized.push_str(name),
        Token::Literal => normalized.push('?'),
        Token::Symbol(symbol) => normalized.push(char::from(symbol)),
        Token::Semicolon => {}
    }
    normalized.push(' ');
}

/// Finds the keyword that says what a statement does.
#[derive(Default)]
struct Classifier {
    class: Option<StatementClass>,
    depth: usize,
    /// After `WITH`: the statement follows the common table expressions.
    in_with: bool,
    previous: Option<Previous>,
    started: bool,
}

/// The token before, where it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Previous {
    Opening,
    Closing,
}

impl Classifier {
    fn take(&mut self, token: Token<'_>) {
        let previous = self.previous.take();
        match token {
            Token::Symbol(b'(') => {
                self.depth += 1;
                self.previous = Some(Previous::Opening);
            }
            Token::Symbol(b')') => {
                self.depth = self.depth.saturating_sub(1);
                self.previous = Some(Previous::Closing);
            }
            Token::Word(word) => self.take_word(word, previous),
            _ if !self.started => self.class = Some(Unknown),
            _ => {}
        }
        // Parentheses may surround the whole statement.
        self.started |= token != Token::Symbol(b'(');
    }

    fn take_word(&mut self, word: &str, previous: Option<Previous>) {
        let class = class_of(word);
        if !self.started {
            self.in_with = word.eq_ignore_ascii_case("WITH");
            self.class = Some(if self.in_with { Unknown } else { class });
        } else if self.in_with
            && self.depth == 0
            && previous == Some(Previous::Closing)
            && !word.eq_ignore_ascii_case("AS")
        {
            // Not a keyword as the name of an expression: the statement follows the last expression's parenthesis.
            self.in_with = false;
            self.class = Some(if self.class == Some(Write) { Write } else { class });
        } else if previous == Some(Previous::Opening) && CHANGES.iter().any(|change| change.eq_ignore_ascii_case(word))
        {
            // A common table expression can change data.
            self.class = Some(Write);
        } else if self.class == Some(Read) && word.eq_ignore_ascii_case("INTO") {
            // SELECT … INTO writes to a table or a file.
            self.class = Some(Write);
        } else if self.class == Some(Show) && word.eq_ignore_ascii_case("ANALYZE") {
            // EXPLAIN ANALYZE executes the statement.
            self.class = Some(Unknown);
        }
    }
}

/// Statements that may be part of another one.
const CHANGES: [&str; 4] = ["INSERT", "UPDATE", "DELETE", "MERGE"];

fn class_of(keyword: &str) -> StatementClass {
    const CLASSES: [(StatementClass, &[&str]); 4] = [
        (Read, &["SELECT", "VALUES"]),
        (Show, &["SHOW", "DESCRIBE", "DESC", "EXPLAIN"]),
        (Write, &["INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "UPSERT", "LOAD", "COPY", "TRUNCATE"]),
        (Admin, &["CREATE", "ALTER", "DROP", "GRANT", "REVOKE", "SET", "RESET", "USE", "REFRESH", "CACHE", "UNCACHE"]),
    ];
    let is_in = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(keyword));
    CLASSES.iter().find(|(_, words)| is_in(words)).map_or(Unknown, |(class, _)| *class)
}

struct Tokens<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Tokens<'a> {
    /// `Some(None)` at the end; `None` if the text is ambiguous here.
    fn next_token(&mut self) -> Option<Option<Token<'a>>> {
        self.skip_blanks()?;
        let start = self.position;
        let Some(&byte) = self.bytes().first() else { return Some(None) };
        let token = match byte {
            b'\'' => {
                self.quoted(b'\'')?;
                Token::Literal
            }
            b'"' | b'`' => Token::QuotedName(self.quoted(byte)?),
            b'0'..=b'9' => {
                // Also 1e-5, 0x1F and 1.5.
                self.advance_while(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_');
                Token::Literal
            }
            byte if is_word(byte) => {
                self.advance_while(|byte| is_word(byte) || byte.is_ascii_digit());
                Token::Word(&self.text[start..self.position])
            }
            b';' => {
                self.position += 1;
                Token::Semicolon
            }
            // Comments or quotes in some dialects.
            b'#' | b'$' | b'\\' => return None,
            byte if byte.is_ascii_graphic() => {
                self.position += 1;
                Token::Symbol(byte)
            }
            _ => return None,
        };
        Some(Some(token))
    }

    fn bytes(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.position..]
    }

    fn advance_while(&mut self, is_part: impl Fn(u8) -> bool) {
        self.position += self.bytes().iter().take_while(|byte| is_part(**byte)).count();
    }

    fn skip_blanks(&mut self) -> Option<()> {
        loop {
            self.advance_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
            match self.bytes() {
                [b'-', b'-', rest @ ..] => {
                    // Without a blank it is two minus signs in MySQL.
                    if !matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')) {
                        return None;
                    }
                    // A carriage return alone ends a line in some dialects only.
                    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    if rest[..end].iter().rev().skip(1).any(|byte| *byte == b'\r') {
                        return None;
                    }
                    self.position += 2 + end;
                }
                [b'/', b'*', rest @ ..] => {
                    let end = rest.windows(2).position(|pair| pair == b"*/")?;
                    // Executable in MySQL; nested in some dialects.
                    if rest.first() == Some(&b'!') || rest[..end].windows(2).any(|pair| pair == b"/*") {
                        return None;
                    }
                    self.position += 2 + end + 2;
                }
                _ => return Some(()),
            }
        }
    }

    /// A text in quotes, with them. A doubled quote is part of it.
    fn quoted(&mut self, quote: u8) -> Option<&'a str> {
        let start = self.position;
        let bytes = self.bytes();
        let mut end = 1;
        loop {
            match (bytes.get(end)?, bytes.get(end + 1)) {
                // An escape in some dialects only.
                (b'\\', Some(b'\'' | b'"' | b'`' | b'\\')) => return None,
                (byte, Some(next)) if *byte == quote && *next == quote => end += 2,
                (byte, _) if *byte == quote => break,
                _ => end += 1,
            }
        }
        self.position += end + 1;
        Some(&self.text[start..self.position])
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> StatementClass {
        classify(text).class
    }

    #[test]
    fn statements_are_classified_by_their_keyword() {
        for (text, expected) in [
            ("SELECT * FROM customer", Read),
            ("  -- a comment\n /* one more */ select 1;", Read),
            ("(SELECT 1) UNION (SELECT 2)", Read),
            ("WITH a AS (SELECT 1), b (x) AS (SELECT 2) SELECT * FROM a, b", Read),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", Write),
            ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", Write),
            ("WITH show AS (SELECT 1), select (x) AS (SELECT 2) DELETE FROM t", Write),
            ("WITH a AS (SELECT 1) frobnicate", Unknown),
            ("WITH a AS (SELECT 1)", Unknown),
            ("SELECT replace(name, 'a', 'b') FROM t WHERE (replace(name, 'a', 'b') = 'c')", Read),
            ("SELECT * INTO copy FROM t", Write),
            ("VALUES (1)", Read),
            ("SHOW TOKEN", Show),
            ("desc customer", Show),
            ("EXPLAIN SELECT 1", Show),
            ("EXPLAIN ANALYZE DELETE FROM t", Unknown),
            ("INSERT INTO t VALUES (1)", Write),
            ("update t set a = 1", Write),
            ("CREATE OR REPLACE ONTOLOGY x", Admin),
            ("DROP TABLE t", Admin),
            ("GRANT QUERY ON x TO y", Admin),
            ("FROM t INSERT INTO u SELECT *", Unknown),
            ("CALL p()", Unknown),
            ("'SELECT'", Unknown),
            ("\"SELECT\" 1", Unknown),
            ("", Unknown),
            (";", Unknown),
            ("WITH", Unknown),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    #[test]
    fn what_dialects_read_differently_is_unknown() {
        for text in [
            "SELECT 1; DROP TABLE t",
            r"SELECT '\'; DROP TABLE t --'",
            r"SELECT '\\'",
            "SELECT 1 --2\n DROP",
            "SELECT 1 -- a\r DROP TABLE t\n",
            "SELECT 1 # comment\n; DROP TABLE t",
            "SELECT $$a$$",
            "SELECT /*! DELETE */ 1",
            "SELECT /* a /* b */ c */ 1",
            "SELECT /* never ended",
            "SELECT 'never ended",
            "SELECT\u{a0}1",
            "SELECT\0 1",
        ] {
            assert_eq!(class(text), Unknown, "{text}");
        }
        assert_eq!(class("SELECT ';', \"a;b\", `c;d` -- ; DROP TABLE t"), Read);
        assert_eq!(class("SELECT 'it''s'"), Read);
    }

    #[test]
    fn statements_that_differ_in_literals_have_the_same_text() {
        let normalized = |text: &str| classify(text).normalized;
        let expected = "SELECT A , `b c` FROM T WHERE X = ? AND Y IN ( ? ) ";
        for text in [
            "select a, `b c` from t where x = 'secret' and y in (1, 2, 3)",
            "SELECT a,`b c`\n FROM t WHERE x='it''s' AND y IN (4)",
            "SELECT a, `b c` FROM t WHERE x = 1.5e3 AND y IN ('a', 0x1F) -- comment",
        ] {
            assert_eq!(normalized(text), expected, "{text}");
        }
        assert_ne!(normalized("SELECT a FROM t"), normalized("SELECT b FROM t"));
        assert_eq!(normalized("SELECT 1; SELECT 2"), "");
    }
}
