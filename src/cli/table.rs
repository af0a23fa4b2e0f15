//! Tables of what the admin listener returns. It knows no command.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::cli::print_line;

/// A column: its title, its width, and the value in a row. The last column has no width.
pub type Column = (&'static str, usize, fn(&Value) -> String);

/// Prints the titles and a line for each row.
pub fn print_table<'a>(columns: &[Column], rows: impl IntoIterator<Item = &'a Value>) -> io::Result<()> {
    print_line(table_line(columns.iter().map(|(title, width, _)| ((*title).to_owned(), *width))))?;
    for row in rows {
        print_line(table_line(columns.iter().map(|(_, width, value)| (value(row), *width))))?;
    }
    Ok(())
}

/// A cell that is wider than its column keeps one space behind it.
fn table_line(cells: impl Iterator<Item = (String, usize)>) -> String {
    let mut line = String::new();
    for (text, width) in cells {
        let _ = write!(line, "{text:<0$} ", width.saturating_sub(1));
    }
    line.trim_end().to_owned()
}

/// The items of a list; none for any other value.
pub fn rows(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text of a row.
pub fn printable_text(row: &Value, name: &str) -> String {
    printable(row[name].as_str().unwrap_or_default())
}

/// A text with its control and format characters escaped.
///
/// SECURITY: clients choose paths, statements and names, and directories and issuers choose groups. All may contain
/// terminal control sequences, and characters that are invisible or reverse what follows.
pub fn printable(text: &str) -> String {
    let is_format = |c| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let escaped = |c: char| if c.is_control() || is_format(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A time of a row, in seconds since the Unix epoch; empty if it has none.
pub fn time(row: &Value, name: &str) -> String {
    row[name].as_u64().map_or(String::new(), format_time)
}

/// RFC 3339 in UTC.
pub fn format_time(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned_and_never_joined() {
        let line =
            |cells: [(&str, usize); 3]| table_line(cells.map(|(text, width)| (text.to_owned(), width)).into_iter());
        assert_eq!(line([("a", 4), ("b", 3), ("c", 0)]), "a   b  c");
        assert_eq!(line([("abcdef", 4), ("", 3), ("", 0)]), "abcdef");
        assert_eq!(line([("abcdef", 4), ("b", 3), ("c", 0)]), "abcdef b  c");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let row = serde_json::json!({ "path": "/a\u{9b}31m\u{1b}[2Jé\u{202e}b\u{feff}" });
        assert_eq!(printable_text(&row, "path"), "/a\\u{9b}31m\\u{1b}[2Jé\\u{202e}b\\u{feff}");
    }
}
