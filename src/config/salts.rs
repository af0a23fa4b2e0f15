//! Splits the text of `API_AUTH_SALT`: one Fernet key, or several separated by commas.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fernet::Fernet;
use zeroize::Zeroizing;

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

/// What to do about a text that is not a salt, but contains one. `None`: it contains none.
pub fn remedy(text: &str) -> Option<&'static str> {
    let is_salt = |text: &str| Fernet::new(text.trim()).is_some();
    // Docker keeps quotes in the file of `--env-file`, and `print` of Python's `bytes` writes `b'…'`.
    let unquoted = text.strip_prefix('b').filter(|rest| rest.starts_with(['\'', '"'])).unwrap_or(text);
    let decoded = || {
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        std::str::from_utf8(&bytes).is_ok_and(is_salt).then_some(())
    };
    if is_salt(unquoted.trim_matches(['\'', '"', '\u{feff}'])) {
        Some("Remove the quotes or the byte-order mark around it")
    } else if text.strip_prefix("API_AUTH_SALT=").is_some_and(is_salt) {
        Some("Remove the name of the variable before it")
    } else if text.contains(char::is_whitespace) && text.split_whitespace().all(is_salt) {
        Some("Separate several salts by commas")
    } else {
        let remedy = "It was encoded in base64 once more; in a Secret, `data` takes base64 and `stringData` plain text";
        decoded().map(|()| remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_in_a_wrong_form_is_recognized() {
        const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
        let twice = STANDARD.encode(format!("{SALT}\n"));
        for (text, expected) in [
            (format!("\"{SALT}\""), "Remove the quotes"),
            (format!("b'{SALT}'"), "Remove the quotes"),
            (format!("\u{feff}{SALT}"), "byte-order mark"),
            (format!("API_AUTH_SALT={SALT}"), "Remove the name"),
            (format!("{SALT}\n{SALT}"), "commas"),
            (twice, "base64 once more"),
        ] {
            assert!(remedy(&text).is_some_and(|remedy| remedy.contains(expected)), "{text}: {:?}", remedy(&text));
        }
        for text in ["", "password", "b", "\"\"", &SALT[1..]] {
            assert_eq!(remedy(text), None, "{text}");
        }
    }
}
