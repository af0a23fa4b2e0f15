//! Reads line-based credential files and reports all their invalid lines.

use std::path::Path;

use crate::base::input_file;

/// Maximum number of reported lines.
const MAX_PROBLEMS: usize = 10;

/// Why a credential file cannot be used. Contains line numbers, never the lines.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {}", .problems.join("; "))]
pub struct CredentialFileError {
    file: String,
    problems: Vec<String>,
}

/// Reads a file and parses its text. The error of `parse` is the list of problems.
pub(super) fn read<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, Vec<String>>,
) -> Result<T, CredentialFileError> {
    let parsed = match input_file::read_text(path) {
        Ok(text) => parse(&text),
        Err(error) => Err(vec![format!("cannot be read: {error}")]),
    };
    parsed.map_err(|problems| CredentialFileError { file: path.display().to_string(), problems })
}

/// Calls `add` with the entry of each line, and returns the problems by line number.
pub(super) fn parse_lines(text: &str, mut add: impl FnMut(&str) -> Result<(), String>) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(problem) = entry(line).and_then(|entry| add(entry).err()) {
            problems.push(format!("line {}: {problem}", number + 1));
        }
        if problems.len() >= MAX_PROBLEMS {
            problems.push("…".to_owned());
            break;
        }
    }
    problems
}

/// The entry in a line; `None` for an empty line or a comment. Some editors begin a file with a byte-order mark.
pub(super) fn entry(line: &str) -> Option<&str> {
    let line = line.trim_start_matches('\u{feff}').trim();
    (!line.is_empty() && !line.starts_with('#')).then_some(line)
}
