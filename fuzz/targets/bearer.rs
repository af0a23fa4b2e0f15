//! Bearers: raw ones, and payloads encrypted with a valid salt.

#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fernet::Fernet;
use libfuzzer_sys::fuzz_target;
use timbr_gateway::auth::bearer::{BearerError, BearerOpener};
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;

const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
const NOW: u64 = 1_700_000_000;

static OPENER: LazyLock<BearerOpener> = LazyLock::new(|| {
    let salts = [SALT, OTHER].map(|salt| Secret::new(salt.to_owned()));
    BearerOpener::new(&salts, None, Clock::manual(NOW))
});
static KEY: LazyLock<Fernet> = LazyLock::new(|| Fernet::new(OTHER).expect("a key"));

fn open(bearer: &str) -> Result<(String, String), BearerError> {
    let login = OPENER.open(bearer)?;
    let (user, password) = (login.user.as_str(), login.password.expose());
    assert!(!user.is_empty() && user.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':'));
    assert!(!user.starts_with(' ') && !user.ends_with(' ') && !password.is_empty());
    Ok((user.to_owned(), password.to_owned()))
}

fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    match how % 4 {
        // Raw input.
        0 => {
            if let Ok(text) = std::str::from_utf8(data) {
                let _ = open(text);
            }
        }
        // Encrypted input.
        1 => drop(open(&KEY.encrypt_at_time(data, NOW))),
        // Encoded and encrypted input.
        2 => {
            let opened = open(&KEY.encrypt_at_time(STANDARD.encode(data).as_bytes(), NOW));
            if let Ok((user, password)) = opened {
                assert_eq!(format!("{user}:{password}").as_bytes(), data);
            }
        }
        // A valid bearer with one changed byte is rejected.
        _ => {
            let good = KEY.encrypt_at_time(STANDARD.encode("alice:secret").as_bytes(), NOW);
            let [at, byte, ..] = *data else { return };
            let mut changed = good.clone().into_bytes();
            let at = usize::from(at) % changed.len();
            changed[at] = byte;
            if let Ok(changed) = String::from_utf8(changed)
                && changed != good
            {
                assert_eq!(open(&changed), Err(BearerError::NotAuthentic));
            }
        }
    }
});
