//! `API_AUTH_SALT` as text: one Fernet key, or several with commas between them.

use crate::base::secret::Secret;

/// The keys in their order, each in the URL-safe alphabet. Python's `cryptography` takes a key in either base64
/// alphabet, and `openssl rand -base64 32` makes the other one. Whether they are Fernet keys is for others to check.
pub fn split(text: &str) -> impl Iterator<Item = Secret> {
    let url_safe = |c| match c {
        '+' => '-',
        '/' => '_',
        other => other,
    };
    text.split(',').map(str::trim).map(move |key| {
        // With its whole room from the start: a text that grows leaves its beginnings behind in memory.
        let mut text = String::with_capacity(key.len());
        text.extend(key.chars().map(url_safe));
        Secret::new(text)
    })
}
