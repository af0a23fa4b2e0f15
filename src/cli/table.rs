//! Tables of what the admin listener returns. It knows no command.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use clap::ArgMatches;
use serde_json::Value;

use crate::cli::print_line;
use crate::observability::log;

/// A column: its title, and the value in a row.
pub type Column = (&'static str, fn(&Value) -> String);

/// Prints a list as a table, or this sentence if it is empty; with `--json` as it is.
pub fn print_list(matches: &ArgMatches, list: &Value, columns: &[Column], if_empty: &str) -> io::Result<()> {
    match rows(list) {
        _ if matches.get_flag("json") => print_line(list),
        [] => print_line(if_empty),
        rows => print_table(columns, rows),
    }
}

/// Prints the titles and a line for each row.
pub fn print_table(columns: &[Column], rows: &[Value]) -> io::Result<()> {
    let titles = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|(_, value)| value(row)).collect());
    let rows: Vec<_> = std::iter::once(titles).chain(cells).collect();
    table_lines(&rows).into_iter().try_for_each(print_line)
}

/// Columns are as wide as their longest cell. An empty cell is `-`, so that scripts can count the columns; the last
/// column may be empty.
fn table_lines(rows: &[Vec<String>]) -> Vec<String> {
    let mut lines = vec![String::new(); rows.len()];
    let last = rows.first().map_or(0, Vec::len).saturating_sub(1);
    for column in 0..=last {
        let cell = |row: &Vec<String>| {
            if row[column].is_empty() && column < last { "-".to_owned() } else { row[column].clone() }
        };
        let cells: Vec<_> = rows.iter().map(cell).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
        for (line, cell) in lines.iter_mut().zip(cells) {
            let _ = write!(line, "{cell:<width$}  ");
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
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
    let is_unsafe = |c: char| c.is_control() || log::is_unsafe_to_print(c);
    text.chars().map(|c| if is_unsafe(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
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
    fn cells_are_aligned_whatever_their_length() {
        let rows = [["KEY", "N", "TEXT"], ["é", "12", ""], ["a long name", "", "b"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table_lines(&rows), ["KEY          N   TEXT", "é            12", "a long name  -   b"]);
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        let row = serde_json::json!({ "path": "/a\u{9b}31m\u{1b}[2Jé\u{202e}b\u{feff}" });
        assert_eq!(printable_text(&row, "path"), "/a\\u{9b}31m\\u{1b}[2Jé\\u{202e}b\\u{feff}");
    }
}
