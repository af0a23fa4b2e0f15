//! One line of names and values, as the rest of the log has them, without the machinery of an event: there is one for
//! each request.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use crate::base::byte_class::is_quotable;
use crate::base::clock;
use crate::base::hex;
use crate::observability::log::LogFormat;

/// The name of a value, as each form of the log writes it.
#[derive(Clone, Copy)]
pub struct Label {
    /// `,"name":`
    pub json: &'static str,
    /// ` name=`
    pub text: &'static str,
    /// The first two with the quote that begins a text.
    pub json_quoted: &'static str,
    /// The same.
    pub text_quoted: &'static str,
}

/// A [`Label`](crate::observability::log::Label), put together when this is compiled.
#[macro_export]
macro_rules! label {
    ($name:literal) => {
        $crate::observability::log::Label {
            json: concat!(",\"", $name, "\":"),
            text: concat!(" ", $name, "="),
            json_quoted: concat!(",\"", $name, "\":\""),
            text_quoted: concat!(" ", $name, "=\""),
        }
    };
}
pub(crate) use label;

/// A line in the making.
pub struct LogRecord<'a> {
    line: &'a mut Vec<u8>,
    format: LogFormat,
}

impl LogRecord<'_> {
    /// Makes a line of this target and gives it to `take`.
    pub fn write(
        format: LogFormat,
        target: &str,
        fill: impl FnOnce(&mut LogRecord<'_>),
        take: impl FnOnce(&[u8]),
    ) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            let mut record = LogRecord { line, format };
            record.begin(target);
            fill(&mut record);
            record.end();
            take(line);
        });
    }

    fn begin(&mut self, target: &str) {
        match self.format {
            LogFormat::Json => {
                self.line.extend_from_slice(b"{\"timestamp\":\"");
                write_now(self.line);
                self.line.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"");
                self.line.extend_from_slice(target.as_bytes());
                self.line.push(b'"');
            }
            LogFormat::Text => {
                write_now(self.line);
                self.line.extend_from_slice(b"  INFO ");
                self.line.extend_from_slice(target.as_bytes());
                self.line.push(b':');
            }
        }
    }

    fn end(&mut self) {
        if self.format == LogFormat::Json {
            self.line.push(b'}');
        }
        self.line.push(b'\n');
    }

    /// Where this is inlined, the lengths of labels are known, and they are written with an instruction or two.
    #[inline(always)]
    fn label(&mut self, json: &'static str, text: &'static str) {
        match self.format {
            LogFormat::Json => self.line.extend_from_slice(json.as_bytes()),
            LogFormat::Text => self.line.extend_from_slice(text.as_bytes()),
        }
    }

    /// A text, in quotes.
    #[inline(always)]
    pub fn text(&mut self, label: Label, value: &str) {
        self.label(label.json_quoted, label.text_quoted);
        self.finish_text(value);
    }

    fn finish_text(&mut self, value: &str) {
        if is_quotable(value.as_bytes()) {
            self.finish_word(value.as_bytes());
        } else {
            self.line.pop();
            write_escaped(self.line, value);
        }
    }

    fn finish_word(&mut self, word: &[u8]) {
        self.line.reserve(word.len() + 1);
        self.line.extend_from_slice(word);
        self.line.push(b'"');
    }

    /// A word of ASCII, without characters that need quotes.
    #[inline(always)]
    pub fn word(&mut self, label: Label, word: &[u8]) {
        self.label(label.json_quoted, label.text);
        match self.format {
            LogFormat::Json => self.finish_word(word),
            LogFormat::Text => self.line.extend_from_slice(word),
        }
    }

    /// A number that is a name, as eight hex digits.
    #[inline(always)]
    pub fn hex(&mut self, label: Label, value: u32) {
        self.word(label, &hex::digits(value));
    }

    /// A number.
    #[inline(always)]
    pub fn number(&mut self, label: Label, value: u64) {
        self.label(label.json, label.text);
        self.push_number(value);
    }

    fn push_number(&mut self, value: u64) {
        self.line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// True or false.
    #[inline(always)]
    pub fn boolean(&mut self, label: Label, value: bool) {
        self.label(label.json, label.text);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A span in milliseconds, to the microsecond.
    #[inline(always)]
    pub fn millis(&mut self, label: Label, span: Duration) {
        self.label(label.json, label.text);
        self.push_millis(span);
    }

    fn push_millis(&mut self, span: Duration) {
        // Five hundred thousand years of them fit.
        let micros = span.as_secs().saturating_mul(1_000_000).saturating_add(span.subsec_micros().into());
        self.push_number(micros / 1000);
        let [hundreds, tens, ones] = digits::<3>(micros % 1000);
        self.line.extend_from_slice(&[b'.', hundreds, tens, ones]);
    }
}

/// A text in quotes, with the escapes of JSON, which are readable in the other format too.
///
/// SECURITY: callers choose what stands here. No character of theirs ends a line, for any reader, or is obeyed by the
/// terminal that shows it.
fn write_escaped(line: &mut Vec<u8>, value: &str) {
    let quoted = serde_json::to_string(value).expect("a text can always be written into memory");
    for character in quoted.chars() {
        if is_unsafe_to_print(character) {
            line.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
        } else {
            line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// Beyond what JSON escapes: control characters, ends of lines, and what turns the order of the text around it.
fn is_unsafe_to_print(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// The last decimal digits of a number.
fn digits<const COUNT: usize>(mut value: u64) -> [u8; COUNT] {
    let mut text = [b'0'; COUNT];
    for digit in text.iter_mut().rev() {
        *digit += u8::try_from(value % 10).expect("one digit");
        value /= 10;
    }
    text
}

/// RFC 3339 in UTC, to the microsecond. All but the last digits change once a second.
fn write_now(line: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = clock::unix_time();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() {
            *second = now.as_secs();
            *text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*second)).to_string();
            text.truncate(text.len() - 1);
        }
        line.extend_from_slice(text.as_bytes());
    });
    let [a, b, c, d, e, f] = digits(now.subsec_micros().into());
    line.extend_from_slice(&[b'.', a, b, c, d, e, f, b'Z']);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(format: LogFormat) -> String {
        let mut text = String::new();
        let fill = |record: &mut LogRecord<'_>| {
            record.text(label!("path"), "/a");
            record.text(label!("odd"), "a\"b\\c\nd\u{1b}é");
            record.word(label!("client"), b"127.0.0.1");
            record.hex(label!("key"), 0x00ab_cdef);
            record.number(label!("status"), 200);
            record.boolean(label!("complete"), true);
            record.millis(label!("ms"), Duration::from_micros(12_045));
        };
        LogRecord::write(format, "access", fill, |line| {
            text = String::from_utf8(line.to_vec()).expect("text");
        });
        text
    }

    #[test]
    fn json_is_json() {
        let line = made(LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["target"], &value["level"]), (&"access".into(), &"INFO".into()));
        assert_eq!(value["odd"], "a\"b\\c\nd\u{1b}é");
        assert_eq!((&value["client"], &value["key"]), (&"127.0.0.1".into(), &"00abcdef".into()));
        assert_eq!((&value["status"], &value["complete"]), (&200.into(), &true.into()));
        assert_eq!(value["ms"], 12.045);
        let stamp = value["timestamp"].as_str().expect("text");
        let told = humantime::parse_rfc3339(stamp).expect("RFC 3339");
        assert!(told.elapsed().is_ok_and(|age| age < Duration::from_secs(60)), "{stamp}");
    }

    #[test]
    fn nothing_that_a_caller_chooses_ends_a_line_or_moves_a_cursor() {
        let odd = "/\u{9b}2J\u{85}\u{2028}\u{202e}\u{7f}\u{200e}é€😀";
        for format in [LogFormat::Json, LogFormat::Text] {
            let mut made = String::new();
            let fill = |record: &mut LogRecord<'_>| record.text(label!("path"), odd);
            LogRecord::write(format, "access", fill, |line| {
                made = String::from_utf8(line.to_vec()).expect("text");
            });
            let expected = r#"/\u009b2J\u0085\u2028\u202e\u007f\u200eé€😀""#;
            assert!(made.contains(expected), "{made}");
            if format == LogFormat::Json {
                let value: serde_json::Value = serde_json::from_str(&made).expect("JSON");
                assert_eq!(value["path"], odd);
            }
        }
    }

    #[test]
    fn a_text_line_is_one_line() {
        let line = made(LogFormat::Text);
        assert_eq!(line.lines().count(), 1);
        let end = " INFO access: path=\"/a\" odd=\"a\\\"b\\\\c\\nd\\u001bé\" client=127.0.0.1 key=00abcdef status=200 \
                   complete=true ms=12.045\n";
        assert!(line.ends_with(end), "{line}");
    }
}
