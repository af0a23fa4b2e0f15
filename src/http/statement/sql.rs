//! Classifies one SQL statement by its keywords, and replaces its literals. It is a tokenizer, not a parser: dialects
//! differ, and the backend has its own.
//!
//! SECURITY: rules allow statements by their class, so a text that two dialects could read differently is `Unknown`: a
//! backslash before a quote, nested or executable comments, a second statement. `sqlparser` has a tokenizer for each
//! dialect, but it decides such questions by its dialect, and allocates a string for each token.

use crate::http::statement::StatementClass::{self, Admin, Read, Show, Unknown, Write};
use crate::http::statement::keyword::Keyword;

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
    Word(&'a str, Keyword),
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
    // Hive and Spark replace variables before they parse the text, also those in quotes and comments.
    if text.contains("${") {
        return None;
    }
    let mut classifier = Classifier::default();
    // Blanks are added.
    let mut normalized = String::with_capacity(text.len() + text.len() / 2);
    let mut tokens = Tokens { text, position: 0, in_brackets: false };
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
    Some((classifier.finish(), normalized))
}

fn push(normalized: &mut String, token: Token<'_>) {
    // A list of literals has the same shape whatever its length.
    if token == Token::Literal && normalized.ends_with("? , ") {
        normalized.truncate(normalized.len() - 2);
        return;
    }
    match token {
        Token::Word(word, _) => {
            let start = normalized.len();
            normalized.push_str(word);
            normalized[start..].make_ascii_uppercase();
        }
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
    /// A part of the statement changes data.
    has_changes: bool,
    /// A part of the statement could do anything.
    is_ambiguous: bool,
    previous: Previous,
    started: bool,
}

/// The token before, where it matters.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Previous {
    Opening,
    Closing,
    /// After it comes a name, an expression or a part of the same statement.
    #[default]
    Continues,
    /// The first word of a statement that shows metadata.
    Show,
    Truncate,
    /// After it, Hive and Spark accept the command line of a program: `SELECT TRANSFORM (a) USING 'sh x'`.
    Using,
    /// After it, T-SQL can begin a statement without a semicolon.
    Ends,
}

impl Previous {
    fn of(token: Token<'_>) -> Previous {
        match token {
            Token::Symbol(b'(') => Previous::Opening,
            Token::Symbol(b')') => Previous::Closing,
            // A label of T-SQL ends with a colon, `@` alone is a variable there, and `?` is a parameter.
            Token::Symbol(b']' | b'}' | b'*' | b':' | b'?' | b'@') => Previous::Ends,
            Token::Symbol(_) => Previous::Continues,
            Token::Word(_, Keyword::As | Keyword::For | Keyword::Select | Keyword::By) => Previous::Continues,
            Token::Word(_, Keyword::Truncate) => Previous::Truncate,
            Token::Word(_, Keyword::Using) => Previous::Using,
            Token::Word(..) | Token::QuotedName(_) | Token::Literal | Token::Semicolon => Previous::Ends,
        }
    }
}

impl Classifier {
    fn take(&mut self, token: Token<'_>) {
        let previous = std::mem::replace(&mut self.previous, Previous::of(token));
        match token {
            Token::Symbol(b'(') => {
                self.depth += 1;
                // The options of EXPLAIN can make it execute the statement.
                self.is_ambiguous |= previous == Previous::Show;
            }
            Token::Symbol(b')') => self.depth = self.depth.saturating_sub(1),
            Token::Word(_, keyword) => self.take_word(keyword, previous),
            Token::Literal if previous == Previous::Using => self.is_ambiguous = true,
            // A string in Spark, but the name of a table after `MERGE INTO t USING` and `DELETE FROM t USING`.
            Token::QuotedName(_) if previous == Previous::Using => self.is_ambiguous |= self.class != Some(Write),
            _ if !self.started => self.class = Some(Unknown),
            _ => {}
        }
        // Parentheses may surround the whole statement.
        self.started |= token != Token::Symbol(b'(');
    }

    fn take_word(&mut self, keyword: Keyword, previous: Previous) {
        if !self.started {
            let class = keyword.class();
            self.in_with = keyword == Keyword::With;
            self.class = Some(class);
            if class == Show {
                self.previous = Previous::Show;
            }
        } else if self.in_with && self.depth == 0 && previous == Previous::Closing && keyword != Keyword::As {
            // Not a keyword as the name of an expression: the statement follows the last expression's parenthesis.
            self.in_with = false;
            self.class = Some(keyword.class());
        } else {
            self.take_inner_word(keyword, previous);
        }
    }

    /// A word after the one that says what the statement does.
    fn take_inner_word(&mut self, keyword: Keyword, previous: Previous) {
        let can_begin_statement = match previous {
            Previous::Opening | Previous::Closing | Previous::Using | Previous::Ends => true,
            Previous::Truncate => keyword == Keyword::Table,
            Previous::Continues | Previous::Show => false,
        };
        // A common table expression can change data, and SELECT … INTO writes to a table or a file.
        self.has_changes |= can_begin_statement && (previous == Previous::Truncate || keyword.changes_data());
        self.has_changes |= keyword == Keyword::Into;
        self.is_ambiguous |= can_begin_statement && keyword.is_powerful();
        // In an UPDATE it belongs to the statement.
        self.is_ambiguous |= can_begin_statement && self.class == Some(Read) && keyword == Keyword::Set;
        // EXPLAIN ANALYZE executes the statement.
        self.is_ambiguous |= self.class == Some(Show) && matches!(keyword, Keyword::Analyze | Keyword::Analyse);
    }

    /// The class of the whole statement.
    fn finish(self) -> StatementClass {
        match self.class {
            // More rights than to create and drop do not exist.
            Some(Admin) => Admin,
            Some(Read | Write) if self.is_ambiguous => Unknown,
            Some(Read) if self.has_changes => Write,
            Some(Show) if self.is_ambiguous || self.has_changes => Unknown,
            class => class.unwrap_or(Unknown),
        }
    }
}

struct Tokens<'a> {
    text: &'a str,
    position: usize,
    /// Between `[` and the next `]`, which is a name in T-SQL: quotes and comments in it are part of the name there.
    in_brackets: bool,
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
                self.advance_while(|byte| is_word(byte) || byte == b'.');
                if !is_number(&self.text[start..self.position]) {
                    return None;
                }
                Token::Literal
            }
            byte if is_word(byte) => {
                self.advance_while(is_word);
                let word = &self.text[start..self.position];
                let keyword = Keyword::find(word);
                // Quotes within q'[…]' end it in all dialects but one.
                let has_own_quotes =
                    matches!(keyword, Keyword::Q | Keyword::Nq) && self.bytes().first() == Some(&b'\'');
                if has_own_quotes || (!word.is_ascii() && word.chars().any(is_ambiguous)) {
                    return None;
                }
                Token::Word(word, keyword)
            }
            b';' => {
                self.position += 1;
                Token::Semicolon
            }
            // Comments or quotes in some dialects.
            b'#' | b'$' | b'\\' => return None,
            // A comment in some dialects.
            b'/' if self.bytes().get(1) == Some(&b'/') => return None,
            byte if byte.is_ascii_graphic() => {
                self.position += 1;
                self.in_brackets = byte == b'[' || (self.in_brackets && byte != b']');
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
        let bytes = self.text.as_bytes();
        while bytes.get(self.position).is_some_and(|byte| is_part(*byte)) {
            self.position += 1;
        }
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
                    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                    let comment = &rest[..end];
                    // A carriage return alone ends a line in some dialects only, and a backslash continues it in Spark.
                    let is_ambiguous =
                        comment.iter().rev().skip(1).any(|byte| *byte == b'\r') || comment.ends_with(b"\\");
                    if is_ambiguous || self.ends_brackets(comment) {
                        return None;
                    }
                    self.position += 2 + end;
                }
                [b'/', b'*', rest @ ..] => {
                    let end = rest.windows(2).position(|pair| pair == b"*/")?;
                    let comment = &rest[..end];
                    if is_ambiguous_comment(comment, &rest[..=end]) || self.ends_brackets(comment) {
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
            let byte = *bytes.get(end)?;
            if byte == quote {
                if bytes.get(end + 1) != Some(&quote) {
                    break;
                }
                end += 1;
            // An escape in some dialects only.
            } else if byte == b'\\' && matches!(bytes.get(end + 1), Some(b'\'' | b'"' | b'`' | b'\\')) {
                return None;
            }
            end += 1;
        }
        if self.ends_brackets(&bytes[..end]) {
            return None;
        }
        self.position += end + 1;
        Some(&self.text[start..self.position])
    }

    /// Whether a text in quotes or a comment would end a name of T-SQL.
    fn ends_brackets(&self, text: &[u8]) -> bool {
        self.in_brackets && text.contains(&b']')
    }
}

/// Whether some dialects read a bracketed comment differently. `with_star` is the comment with the star behind it.
fn is_ambiguous_comment(comment: &[u8], with_star: &[u8]) -> bool {
    // Executable in MySQL (`/*!`), MariaDB (`/*M!`) and TiDB (`/*T!`).
    let is_executable = comment.iter().find(|byte| !byte.is_ascii_alphabetic()) == Some(&b'!');
    let is_nested = with_star.windows(2).any(|pair| pair == b"/*");
    // Spark and Calcite read tokens in a hint, so the end of a comment may be in a string or a comment there.
    let is_hint_with_tokens = comment.starts_with(b"+")
        && (comment.iter().any(|byte| b"'\"`".contains(byte)) || comment.windows(2).any(|pair| pair == b"--"));
    // Spark 2 does not end a comment with the slash of `/**/`.
    is_executable || is_nested || is_hint_with_tokens || comment.is_empty()
}

/// Whether letters after the digits belong to the number in all dialects: `1e-5`, `0x1F`, `1L`, `1.0BD`. `1INTO` is two
/// tokens in some.
fn is_number(text: &str) -> bool {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    }
    let is_plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
    let suffix = text.trim_start_matches(|character: char| is_plain(character as u8) && character.is_ascii());
    match suffix.as_bytes() {
        [] => true,
        [letter] => letter.is_ascii_alphabetic(),
        [b'e' | b'E', exponent @ ..] if exponent.iter().all(u8::is_ascii_digit) => true,
        other => other.eq_ignore_ascii_case(b"BD"),
    }
}

/// SECURITY: a blank of Unicode separates words in some dialects, and some programs turn these letters into those of a
/// keyword when they change the case.
fn is_ambiguous(character: char) -> bool {
    let has_ascii_case = matches!(character, 'ı' | 'İ' | 'ſ' | '\u{212a}');
    !character.is_ascii() && (has_ascii_case || !character.is_alphanumeric())
}

/// Whether it is part of a word, which begins with no digit.
fn is_word(byte: u8) -> bool {
    const IS_WORD: [bool; 256] = {
        let (mut is_word, mut byte) = ([false; 256], 0);
        while byte < 256 {
            is_word[byte] = byte == b'_' as usize || byte >= 0x80 || (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        is_word
    };
    IS_WORD[usize::from(byte)]
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
            ("WITH a AS (WITH b AS (SELECT 1) DELETE FROM t RETURNING *) SELECT * FROM a", Write),
            ("WITH a AS (SELECT 1), b AS (WITH c (x) AS (SELECT 2) UPDATE t SET y = 1) TABLE a", Unknown),
            ("SELECT (1) DELETE FROM t", Write),
            ("SELECT a FROM t TRUNCATE TABLE t", Write),
            ("SELECT truncate(a, 1), t.update, insert('a', 1, 1, 'b') FROM t ORDER BY delete FOR UPDATE", Read),
            ("SELECT [a b], x['key'], 1e5, 1.5E-3, 0x1F, 7L, 1.0BD AS set FROM straße", Read),
            ("SELECT a::date, :name FROM t WHERE b = ?", Read),
            ("SELECT /*+ BROADCAST(a), COALESCE(3) */ convert(x USING utf8) FROM a JOIN b USING (id)", Read),
            ("SELECT transform(a, x -> x + 1) FROM t -- \\ '", Read),
            ("MERGE INTO t USING \"S\" ON a = b WHEN MATCHED THEN DELETE", Write),
            ("SELECT 1 x: DELETE FROM t", Write),
            ("SHOW CREATE TABLE t", Show),
            ("EXPLAIN DELETE FROM t", Show),
            ("EXPLAIN ANALYSE DELETE FROM t", Unknown),
            ("EXPLAIN (\"analyze\") DELETE FROM t", Unknown),
            ("EXPLAIN VERBOSE DELETE FROM t", Unknown),
            ("CREATE TABLE t (update INT)", Admin),
            ("GRANT SELECT ON (update) TO x", Admin),
            ("CALL p((update))", Unknown),
            (
                "MERGE INTO t USING u ON (a = b) WHEN MATCHED THEN UPDATE SET a = 1 WHEN NOT MATCHED THEN INSERT *",
                Write,
            ),
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
            "SELECT 1 // '\n INTO u // '",
            "SELECT /*M! DELETE */ 1",
            "SELECT 1 /*/*/ FROM t",
            "SELECT [a'] INTO u FROM t --']",
            "SELECT [a--]\n INTO u FROM t",
            "SELECT [a/*] INTO u FROM t --]*/",
            "SELECT q'[']' INTO u FROM t --'",
            "SELECT 1INTO u",
            "SELECT 0xINTO u",
            "SELECT 1e5DROP TABLE t",
            "SELECT 1\u{3000}INTO u",
            "SELECT 1 \u{feff}INTO u",
            "SELECT 1 \u{131}nto u",
            "SELECT 1 DROP TABLE t",
            "SELECT a FROM t EXEC p",
            "SELECT * CREATE TABLE u (a INT)",
            "SELECT 'a' SET ROWCOUNT 1",
            "SELECT [a] GRANT CONTROL TO x",
            "SELECT (1) EXEC ('DROP TABLE t')",
            "INSERT INTO t EXEC p",
            "UPDATE t SET a = 1 DROP TABLE u",
            "SELECT 1 x: DROP TABLE t",
            "SELECT 1 x:EXEC p",
            "SELECT ? DROP TABLE t",
            "SELECT @x DROP TABLE t",
            "SELECT @ DROP TABLE t",
            "WITH a AS (SELECT '${q}') SELECT 1",
            "SELECT 1 -- ${q}",
            "SELECT 1 USE hr SELECT * FROM t",
            "SELECT 1 SETUSER 'dbo'",
            "WITH a AS (SELECT 1) -- \\\n SELECT '\n INSERT INTO t SELECT * FROM a -- '",
            "WITH a AS (SELECT /*+ h('*/ 1) SELECT ') */ 1) INSERT INTO t SELECT * FROM a -- '",
            "SELECT /*+ h -- */ 1 '\n */ a INTO u FROM t -- '",
            "WITH a AS (SELECT 1) /**/ SELECT ' */ INSERT INTO t SELECT * FROM a -- '",
            "SELECT /*T! a INTO u FROM t */ 1",
            "SELECT TRANSFORM (a) USING 'sh x' AS (b) FROM t",
            "SELECT * FROM (FROM t MAP a USING \"sh x\" AS b) u",
            "INSERT INTO u SELECT TRANSFORM (a) USING /* */ 'sh x' FROM t",
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
