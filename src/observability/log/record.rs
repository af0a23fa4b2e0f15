//! Formats one log line of labels and values without the cost of a `tracing` event, as each request writes one. It
//! knows the two formats, but not what is logged.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use crate::base::byte_class::is_quotable;
use crate::base::clock;
use crate::base::hex;
use crate::observability::log::LogFormat;

/// The name of a value, as each format writes it.
#[derive(Clone, Copy)]
pub struct Label {
    /// `,"name":`
    pub json: &'static str,
    /// ` name=`
    pub text: &'static str,
    /// `,"name":"`
    pub json_quoted: &'static str,
    /// ` name="`
    pub text_quoted: &'static str,
}

/// Builds a [`Label`](crate::observability::log::Label) at compile time.
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

/// A line that is being formatted.
pub struct LogRecord<'a> {
    line: &'a mut Vec<u8>,
    format: LogFormat,
}

impl LogRecord<'_> {
    /// Formats a line with this target and passes it to `take`. The buffer of the thread is reused.
    pub fn write(format: LogFormat, target: &str, fill: impl FnOnce(&mut LogRecord<'_>), take: impl FnOnce(&[u8])) {
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

    /// Inlined, the length of the label is a constant, and writing it takes one or two instructions.
    #[inline(always)]
    fn label(&mut self, json: &'static str, text: &'static str) {
        match self.format {
            LogFormat::Json => self.line.extend_from_slice(json.as_bytes()),
            LogFormat::Text => self.line.extend_from_slice(text.as_bytes()),
        }
    }

    /// Adds a string of any content, quoted and escaped.
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

    /// Adds an ASCII word that needs no escapes; quoted in JSON only.
    #[inline(always)]
    pub fn word(&mut self, label: Label, word: &[u8]) {
        self.label(label.json_quoted, label.text);
        match self.format {
            LogFormat::Json => self.finish_word(word),
            LogFormat::Text => self.line.extend_from_slice(word),
        }
    }

    /// Adds an identifier as eight hex digits.
    #[inline(always)]
    pub fn hex(&mut self, label: Label, value: u32) {
        self.word(label, &hex::digits(value));
    }

    /// Adds a number.
    #[inline(always)]
    pub fn number(&mut self, label: Label, value: u64) {
        self.label(label.json, label.text);
        self.push_number(value);
    }

    fn push_number(&mut self, value: u64) {
        self.line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Adds `true` or `false`.
    #[inline(always)]
    pub fn boolean(&mut self, label: Label, value: bool) {
        self.label(label.json, label.text);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Adds a duration in milliseconds with three decimals.
    #[inline(always)]
    pub fn millis(&mut self, label: Label, duration: Duration) {
        self.label(label.json, label.text);
        self.push_millis(duration);
    }

    fn push_millis(&mut self, duration: Duration) {
        // Enough for 500 000 years.
        let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros().into());
        self.push_number(micros / 1000);
        let [hundreds, tens, ones] = digits::<3>(micros % 1000);
        self.line.extend_from_slice(&[b'.', hundreds, tens, ones]);
    }
}

/// Writes a quoted string with JSON escapes, in both formats.
///
/// SECURITY: clients choose these values. None of their characters may end a line, for any reader, or control the
/// terminal that shows it.
fn write_escaped(line: &mut Vec<u8>, value: &str) {
    let quoted = serde_json::to_string(value).expect("a string always serializes");
    for character in quoted.chars() {
        if is_unsafe_to_print(character) {
            line.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
        } else {
            line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// Characters that JSON does not escape: C1 control characters, line separators, invisible characters, and controls of
/// text direction.
pub fn is_unsafe_to_print(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
    )
}

/// The last `COUNT` decimal digits of a number, zero-padded.
fn digits<const COUNT: usize>(mut value: u64) -> [u8; COUNT] {
    let mut text = [b'0'; COUNT];
    for digit in text.iter_mut().rev() {
        *digit += u8::try_from(value % 10).expect("one digit");
        value /= 10;
    }
    text
}

/// Writes the current time, RFC 3339 in UTC with microseconds. The part up to the seconds is cached.
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

    fn formatted(format: LogFormat) -> String {
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
    fn json_lines_are_valid_json() {
        let line = formatted(LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["target"], &value["level"]), (&"access".into(), &"INFO".into()));
        assert_eq!(value["odd"], "a\"b\\c\nd\u{1b}é");
        assert_eq!((&value["client"], &value["key"]), (&"127.0.0.1".into(), &"00abcdef".into()));
        assert_eq!((&value["status"], &value["complete"]), (&200.into(), &true.into()));
        assert_eq!(value["ms"], 12.045);
        let stamp = value["timestamp"].as_str().expect("text");
        let time = humantime::parse_rfc3339(stamp).expect("RFC 3339");
        assert!(time.elapsed().is_ok_and(|age| age < Duration::from_secs(60)), "{stamp}");
    }

    #[test]
    fn values_of_clients_cannot_end_a_line_or_control_a_terminal() {
        let odd = "/\u{9b}2J\u{85}\u{2028}\u{202e}\u{7f}\u{200e}é€😀";
        for format in [LogFormat::Json, LogFormat::Text] {
            let mut line_text = String::new();
            let fill = |record: &mut LogRecord<'_>| record.text(label!("path"), odd);
            LogRecord::write(format, "access", fill, |line| {
                line_text = String::from_utf8(line.to_vec()).expect("text");
            });
            let expected = r#"/\u009b2J\u0085\u2028\u202e\u007f\u200eé€😀""#;
            assert!(line_text.contains(expected), "{line_text}");
            if format == LogFormat::Json {
                let value: serde_json::Value = serde_json::from_str(&line_text).expect("JSON");
                assert_eq!(value["path"], odd);
            }
        }
    }

    #[test]
    fn a_text_record_is_one_line() {
        let line = formatted(LogFormat::Text);
        assert_eq!(line.lines().count(), 1);
        let end = " INFO access: path=\"/a\" odd=\"a\\\"b\\\\c\\nd\\u001bé\" client=127.0.0.1 key=00abcdef status=200 \
                   complete=true ms=12.045\n";
        assert!(line.ends_with(end), "{line}");
    }
}
