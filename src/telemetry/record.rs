//! One line of names and values, as the rest of the log has them, without the machinery of an event: there is one for
//! each request.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::telemetry::Format;

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

    fn name(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                self.line.extend_from_slice(b",\"");
                self.line.extend_from_slice(name.as_bytes());
                self.line.extend_from_slice(b"\":");
            }
            Format::Text => {
                self.line.push(b' ');
                self.line.extend_from_slice(name.as_bytes());
                self.line.push(b'=');
            }
        }
    }

    /// A text, in quotes.
    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let plain = |byte: &u8| (b' '..0x7f).contains(byte) && *byte != b'"' && *byte != b'\\';
        if value.as_bytes().iter().all(plain) {
            self.line.push(b'"');
            self.line.extend_from_slice(value.as_bytes());
            self.line.push(b'"');
            return;
        }
        // Escapes of JSON are readable in the other format too.
        serde_json::to_writer(&mut *self.line, value).expect("a text can always be written into memory");
    }

    /// Whatever has no characters that need quotes.
    pub fn word(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        let quote: &[u8] = if self.format == Format::Json { b"\"" } else { b"" };
        self.line.extend_from_slice(quote);
        let _ = write!(self.line, "{value}");
        self.line.extend_from_slice(quote);
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// True or false.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.line.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A span in milliseconds, to the microsecond.
    pub fn millis(&mut self, name: &str, span: Duration) {
        self.name(name);
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.line.extend_from_slice(itoa::Buffer::new().format(micros / 1000).as_bytes());
        self.line.push(b'.');
        write_digits(self.line, micros % 1000, 3);
    }
}

fn write_digits(line: &mut Vec<u8>, value: u64, digits: u32) {
    for position in (0..digits).rev() {
        let digit = value / 10_u64.pow(position) % 10;
        line.push(b'0' + u8::try_from(digit).expect("one digit"));
    }
}

/// RFC 3339 in UTC, to the microsecond. All but the last digits change once a second.
fn write_now(line: &mut Vec<u8>) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() {
            *second = now.as_secs();
            *text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*second)).to_string();
            text.truncate(text.len() - 1);
        }
        line.extend_from_slice(text.as_bytes());
    });
    line.push(b'.');
    write_digits(line, u64::from(now.subsec_micros()), 6);
    line.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(format: Format) -> String {
        let mut text = String::new();
        let fill = |record: &mut Record<'_>| {
            record.text("path", "/a");
            record.text("odd", "a\"b\\c\nd\u{1b}é");
            record.word("client", std::net::IpAddr::from([127, 0, 0, 1]));
            record.number("status", 200);
            record.flag("complete", true);
            record.millis("ms", Duration::from_micros(12_045));
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
        assert_eq!(value["client"], "127.0.0.1");
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
        let end = " INFO access: path=\"/a\" odd=\"a\\\"b\\\\c\\nd\\u001bé\" client=127.0.0.1 status=200 \
                   complete=true ms=12.045\n";
        assert!(line.ends_with(end), "{line}");
    }
}
