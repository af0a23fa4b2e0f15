//! One line of names and values, as the rest of the log has them, without the machinery of an event: there is one for
//! each request.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;
use crate::octets::{hex_digits, needs_no_escapes};
use crate::telemetry::Format;

/// The name of a value, as each form of the log writes it.
#[derive(Clone, Copy)]
pub struct Label {
    /// `,"name":`
    pub json: &'static str,
    /// ` name=`
    pub text: &'static str,
}

/// A [`Label`], put together when this is compiled.
macro_rules! label {
    ($name:literal) => {
        $crate::telemetry::Label { json: concat!(",\"", $name, "\":"), text: concat!(" ", $name, "=") }
    };
}
pub(crate) use label;

/// A line in the making.
pub struct Record<'a> {
    line: &'a mut Vec<u8>,
    format: Format,
}

impl Record<'_> {
    /// Makes a line of this target and gives it to `take`.
    pub fn make(format: Format, target: &str, fill: impl FnOnce(&mut Record<'_>), take: impl FnOnce(&[u8])) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            let mut record = Record { line, format };
            record.begin(target);
            fill(&mut record);
            record.end();
            take(line);
        });
    }

    fn begin(&mut self, target: &str) {
        match self.format {
            Format::Json => {
                self.line.extend_from_slice(b"{\"timestamp\":\"");
                write_now(self.line);
                self.line.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"");
                self.line.extend_from_slice(target.as_bytes());
                self.line.push(b'"');
            }
            Format::Text => {
                write_now(self.line);
                self.line.extend_from_slice(b"  INFO ");
                self.line.extend_from_slice(target.as_bytes());
                self.line.push(b':');
            }
        }
    }

    fn end(&mut self) {
        if self.format == Format::Json {
            self.line.push(b'}');
        }
        self.line.push(b'\n');
    }

    fn label(&mut self, label: Label) {
        let label = match self.format {
            Format::Json => label.json,
            Format::Text => label.text,
        };
        self.line.extend_from_slice(label.as_bytes());
    }

    /// A text, in quotes.
    pub fn text(&mut self, label: Label, value: &str) {
        self.label(label);
        if needs_no_escapes(value.as_bytes()) {
            self.line.push(b'"');
            self.line.extend_from_slice(value.as_bytes());
            self.line.push(b'"');
            return;
        }
        // Escapes of JSON are readable in the other format too.
        serde_json::to_writer(&mut *self.line, value).expect("a text can always be written into memory");
    }

    /// A word of ASCII, without characters that need quotes.
    pub fn word(&mut self, label: Label, word: &[u8]) {
        self.label(label);
        if self.format == Format::Text {
            return self.line.extend_from_slice(word);
        }
        self.line.push(b'"');
        self.line.extend_from_slice(word);
        self.line.push(b'"');
    }

    /// A number that is a name, as eight hex digits.
    pub fn hex(&mut self, label: Label, value: u32) {
        self.word(label, &hex_digits(value));
    }

    /// A number.
    pub fn number(&mut self, label: Label, value: u64) {
        self.label(label);
        self.line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// True or false.
    pub fn flag(&mut self, label: Label, value: bool) {
        self.label(label);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A span in milliseconds, to the microsecond.
    pub fn millis(&mut self, label: Label, span: Duration) {
        self.label(label);
        // Five hundred thousand years of them fit.
        let micros = span.as_secs().saturating_mul(1_000_000).saturating_add(span.subsec_micros().into());
        self.line.extend_from_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
        self.line.push(b'.');
        self.line.extend_from_slice(&digits::<3>(micros % 1000));
    }
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
    let now = clock::wall();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() {
            *second = now.as_secs();
            *text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*second)).to_string();
            text.truncate(text.len() - 1);
        }
        line.extend_from_slice(text.as_bytes());
    });
    line.push(b'.');
    line.extend_from_slice(&digits::<6>(now.subsec_micros().into()));
    line.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(format: Format) -> String {
        let mut text = String::new();
        let fill = |record: &mut Record<'_>| {
            record.text(label!("path"), "/a");
            record.text(label!("odd"), "a\"b\\c\nd\u{1b}é");
            record.word(label!("client"), b"127.0.0.1");
            record.hex(label!("key"), 0x00ab_cdef);
            record.number(label!("status"), 200);
            record.flag(label!("complete"), true);
            record.millis(label!("ms"), Duration::from_micros(12_045));
        };
        Record::make(format, "access", fill, |line| {
            text = String::from_utf8(line.to_vec()).expect("text");
        });
        text
    }

    #[test]
    fn json_is_json() {
        let line = made(Format::Json);
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
    fn a_text_line_is_one_line() {
        let line = made(Format::Text);
        assert_eq!(line.lines().count(), 1);
        let end = " INFO access: path=\"/a\" odd=\"a\\\"b\\\\c\\nd\\u001bé\" client=127.0.0.1 key=00abcdef status=200 \
                   complete=true ms=12.045\n";
        assert!(line.ends_with(end), "{line}");
    }
}
