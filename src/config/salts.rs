//! Splits the text of `API_AUTH_SALT`: one Fernet key, or several separated by commas.

use crate::base::secret::Secret;

/// The keys as listed, converted to the URL-safe base64 alphabet; they are not validated. Python's `cryptography`
/// accepts both alphabets, and `openssl rand -base64 32` produces the other one.
pub fn split(text: &str) -> impl Iterator<Item = Secret> {
    let url_safe = |c| match c {
        '+' => '-',
        '/' => '_',
        other => other,
    };
    text.split(',').map(str::trim).map(move |key| {
        // SECURITY: allocated once, because a string that grows leaves copies of the secret in memory.
        let mut text = String::with_capacity(key.len());
        text.extend(key.chars().map(url_safe));
        Secret::new(text)
    })
}
