//! Opens the bearer of `get_token`: a Fernet token with the payload base64(`username:password`).

use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE};
use base64::engine::{DecodePaddingMode, general_purpose::PAD};
use fernet::Fernet;
use zeroize::Zeroizing;

use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::base::user_name::UserName;

/// User name and password as sent by the client. The password is not verified.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user name, not verified.
    pub user: UserName,
    /// The password; never empty.
    pub password: Secret,
}

/// Why a bearer is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// Not a Fernet token, made with a different salt, or modified.
    #[error("not a Fernet token made with this API_AUTH_SALT")]
    NotAuthentic,
    /// Authentic, but older than `auth.bearer_max_age`.
    #[error("older than auth.bearer_max_age")]
    TooOld,
    /// Authentic, but its creation time is in the future.
    #[error("created more than a minute in the future: a clock is wrong")]
    MadeInFuture,
    /// Authentic, but the payload is not base64(`username:password`).
    #[error("the payload is not base64 of username:password, both not empty")]
    NoCredentials,
    /// Authentic, but the user name cannot be sent in a header.
    #[error("the user name cannot be sent in a header")]
    InvalidUserName,
}

/// Maximum time by which a client's clock may be ahead, in seconds; the value of the Fernet implementations.
const MAX_CLOCK_SKEW: u64 = 60;

/// In bytes. A longer bearer is rejected before it is decoded.
const MAX_LENGTH: usize = 8 * 1024;

/// Python encodes the payload in the standard alphabet with padding; other clients omit the padding.
const PAYLOAD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, OPTIONAL_PADDING);
const OPTIONAL_PADDING: GeneralPurposeConfig = PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// Opens bearers with all active salts.
pub struct BearerOpener {
    keys: Vec<Fernet>,
    max_age: Option<Duration>,
    clock: Clock,
}

impl BearerOpener {
    /// `salts` are Fernet keys, which the configuration validated.
    pub fn new(salts: &[Secret], max_age: Option<Duration>, clock: Clock) -> BearerOpener {
        let key = |salt: &Secret| Fernet::new(salt.expose()).expect("the configuration checked the salts");
        BearerOpener { keys: salts.iter().map(key).collect(), max_age, clock }
    }

    /// As `open_with_salt`, without the index of the salt.
    pub fn open(&self, bearer: &str) -> Result<Credentials, BearerError> {
        self.open_with_salt(bearer).map(|(_, credentials)| credentials)
    }

    /// Returns the credentials in a bearer, and the index of the salt that opened it.
    pub fn open_with_salt(&self, bearer: &str) -> Result<(u8, Credentials), BearerError> {
        let (salt, payload) = self.decrypt(bearer)?;
        // Many encoders break their lines (RFC 2045 section 6.8), such as Python's `encodebytes`.
        let payload: Vec<u8> = payload.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        let payload = Zeroizing::new(payload);
        let text = PAYLOAD.decode(payload.trim_ascii()).map(Zeroizing::new);
        let text = text.map_err(|_| BearerError::NoCredentials)?;
        // The first colon is the separator: a password may contain colons.
        let colon = text.iter().position(|byte| *byte == b':').ok_or(BearerError::NoCredentials)?;
        let (user, password) = (&text[..colon], &text[colon + 1..]);
        if user.is_empty() || password.is_empty() {
            return Err(BearerError::NoCredentials);
        }
        let user = UserName::parse(user).map_err(|_| BearerError::InvalidUserName)?;
        let password = std::str::from_utf8(password).map_err(|_| BearerError::NoCredentials)?;
        Ok((salt, Credentials { user, password: Secret::new(password.to_owned()) }))
    }

    /// A new bearer with these credentials, made with the primary salt.
    pub fn make(&self, login: &Credentials) -> Secret {
        encrypt(&self.keys[0], login.user.as_str(), &login.password)
    }

    fn decrypt(&self, bearer: &str) -> Result<(u8, Zeroizing<Vec<u8>>), BearerError> {
        let created = creation_time(bearer).ok_or(BearerError::NotAuthentic)?;
        // SECURITY: decrypts with the creation time as the current time, so that only the signature decides whether the
        // bearer is authentic. The age is checked below, and only clients with the salt learn the result.
        let opened = self
            .keys
            .iter()
            .zip(0..)
            .find_map(|(key, salt)| Some((salt, Zeroizing::new(key.decrypt_at_time(bearer, None, created).ok()?))));
        let (salt, payload) = opened.ok_or(BearerError::NotAuthentic)?;
        let now = self.clock.unix_seconds();
        if created > now + MAX_CLOCK_SKEW {
            return Err(BearerError::MadeInFuture);
        }
        if self.max_age.is_some_and(|age| created.saturating_add(age.as_secs()) < now) {
            return Err(BearerError::TooOld);
        }
        Ok((salt, payload))
    }
}

/// The creation time in the bearer, in seconds since the epoch; `None` if it is malformed. Not authenticated.
pub fn creation_time(bearer: &str) -> Option<u64> {
    if bearer.len() > MAX_LENGTH {
        return None;
    }
    // The whole token must be URL-safe base64 with padding; the fernet crate is less strict.
    let bytes = URL_SAFE.decode(bearer).ok()?;
    let seconds = u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
    // Prevents overflow in sums of times; no authentic bearer has such a time.
    (bytes[0] == 0x80 && seconds < u64::MAX / 2).then_some(seconds)
}

/// Makes the bearer for a user, as the documentation's Python script does. `None` if the salt is not a Fernet key.
pub fn make_bearer(salt: &Secret, user: &str, password: &Secret) -> Option<Secret> {
    Fernet::new(salt.expose()).map(|key| encrypt(&key, user, password))
}

fn encrypt(key: &Fernet, user: &str, password: &Secret) -> Secret {
    let text = Zeroizing::new(format!("{user}:{}", password.expose()));
    let payload = Zeroizing::new(PAYLOAD.encode(text.as_bytes()));
    Secret::new(key.encrypt(payload.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";
    const OTHER: &str = "d6HnHQJy2nl1YqLeN0dZlmaIHvVkAx2gRUbDUr3lKEE=";
    const NOW: u64 = 1_700_000_000;

    fn opener(salts: &[&str], max_age: Option<u64>) -> BearerOpener {
        let salts: Vec<_> = salts.iter().map(|salt| Secret::new((*salt).to_owned())).collect();
        BearerOpener::new(&salts, max_age.map(Duration::from_secs), Clock::manual(NOW))
    }

    fn bearer(salt: &str, payload: &[u8], made: u64) -> String {
        Fernet::new(salt).expect("a key").encrypt_at_time(payload, made)
    }

    fn open(text: &[u8]) -> Result<(String, String), BearerError> {
        let bearer = bearer(SALT, PAYLOAD.encode(text).as_bytes(), NOW);
        let credentials = opener(&[SALT], None).open(&bearer)?;
        Ok((credentials.user.to_string(), credentials.password.expose().to_owned()))
    }

    #[test]
    fn the_first_colon_separates_user_and_password() {
        assert_eq!(open(b"alice:secret"), Ok(("alice".into(), "secret".into())));
        assert_eq!(open(b"alice:a:b:"), Ok(("alice".into(), "a:b:".into())));
        assert_eq!(open("alice:pässwörd".as_bytes()), Ok(("alice".into(), "pässwörd".into())));
    }

    #[test]
    fn a_payload_without_credentials_has_its_own_error() {
        for text in ["", "alice", ":", "alice:", ":secret"] {
            assert_eq!(open(text.as_bytes()), Err(BearerError::NoCredentials), "{text}");
        }
        for text in ["a\nb:c", " alice:c", "jos\u{e9}:c", "a\0:c"] {
            assert_eq!(open(text.as_bytes()), Err(BearerError::InvalidUserName), "{text}");
        }
        let raw = bearer(SALT, b"alice:not-in-base64", NOW);
        assert_eq!(opener(&[SALT], None).open(&raw).expect_err("raw"), BearerError::NoCredentials);
    }

    #[test]
    fn the_base64_of_the_payload_may_have_line_breaks() {
        let text = PAYLOAD.encode(format!("alice:{}", "long secret ".repeat(20)));
        for end in ["\n", "\r\n"] {
            let lines: Vec<_> =
                text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).expect("text")).collect();
            let payload = format!("{}{end}", lines.join(end));
            let credentials = opener(&[SALT], None).open(&bearer(SALT, payload.as_bytes(), NOW)).expect("valid");
            assert_eq!(credentials.user.to_string(), "alice");
        }
        let payload = format!("{} {}", &text[..76], &text[76..]);
        assert!(opener(&[SALT], None).open(&bearer(SALT, payload.as_bytes(), NOW)).is_err(), "no other characters");
    }

    #[test]
    fn only_configured_salts_open_a_bearer() {
        let payload = PAYLOAD.encode("alice:secret");
        for salt in [SALT, OTHER] {
            let bearer = bearer(salt, payload.as_bytes(), NOW);
            assert!(opener(&[SALT, OTHER], None).open(&bearer).is_ok());
        }
        let foreign = bearer(OTHER, payload.as_bytes(), NOW);
        assert_eq!(opener(&[SALT], None).open(&foreign).expect_err("foreign"), BearerError::NotAuthentic);
    }

    #[test]
    fn authenticity_is_checked_before_age() {
        let payload = PAYLOAD.encode("alice:secret");
        let open = |made, max_age| opener(&[SALT], max_age).open(&bearer(SALT, payload.as_bytes(), made)).map(drop);
        assert_eq!(open(0, None), Ok(()));
        assert_eq!(open(NOW - 60, Some(60)), Ok(()));
        assert_eq!(open(NOW - 61, Some(60)), Err(BearerError::TooOld));
        assert_eq!(open(NOW + 60, None), Ok(()));
        assert_eq!(open(NOW + 61, None), Err(BearerError::MadeInFuture));
        let forged = bearer(OTHER, payload.as_bytes(), NOW + 61);
        assert_eq!(opener(&[SALT], None).open(&forged).expect_err("forged"), BearerError::NotAuthentic);
    }

    #[test]
    fn malformed_bearers_are_not_authentic() {
        let good = bearer(SALT, PAYLOAD.encode("alice:secret").as_bytes(), NOW);
        let long = "A".repeat(MAX_LENGTH + 4);
        let extreme = URL_SAFE.encode([&[0x80][..], &[0xff; 72]].concat());
        let unpadded = bearer(SALT, b"YTpi", NOW);
        let unpadded = unpadded.trim_end_matches('=');
        for text in ["", "=", "gAAA", "ü", &good[1..], &good[..good.len() - 4], &long, &extreme, unpadded] {
            assert_eq!(opener(&[SALT], None).open(text).map(drop), Err(BearerError::NotAuthentic), "{text}");
        }
        let mut changed = good.into_bytes();
        for i in 0..changed.len() {
            changed[i] ^= 1;
            let text = String::from_utf8_lossy(&changed).into_owned();
            assert!(opener(&[SALT], None).open(&text).is_err(), "byte {i}");
            changed[i] ^= 1;
        }
    }

    #[test]
    fn a_made_bearer_can_be_opened() {
        let salt = Secret::new(SALT.into());
        let bearer = make_bearer(&salt, "alice", &Secret::new("se:cret".into())).expect("made");
        let opener = BearerOpener::new(&[salt], Some(Duration::from_secs(60)), Clock::system());
        assert_eq!(opener.open(bearer.expose()).expect("opens").password.expose(), "se:cret");
    }

    /// The test vectors of the Fernet specification.
    mod specification {
        use super::*;

        fn vectors(text: &str) -> Vec<serde_json::Value> {
            serde_json::from_str(text).expect("a list")
        }

        fn decrypt(vector: &serde_json::Value, max_age: Option<u64>) -> Result<Vec<u8>, BearerError> {
            let clock = Clock::manual(unix(vector["now"].as_str().expect("now")));
            let salt = Secret::new(vector["secret"].as_str().expect("secret").to_owned());
            let opener = BearerOpener::new(&[salt], max_age.map(Duration::from_secs), clock);
            opener.decrypt(vector["token"].as_str().expect("token")).map(|(_, payload)| payload.to_vec())
        }

        /// All times in the vectors have the offset -07:00.
        fn unix(time: &str) -> u64 {
            let local = time.strip_suffix("-07:00").expect("the vectors' offset");
            let time = humantime::parse_rfc3339(&format!("{local}Z")).expect("a time");
            time.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() + 7 * 3600
        }

        #[test]
        fn valid_tokens_open() {
            let all = vectors(include_str!("../../tests/data/fernet-spec/verify.json"));
            assert!(!all.is_empty());
            for vector in all {
                let opened = decrypt(&vector, vector["ttl_sec"].as_u64()).expect("opens");
                assert_eq!(opened, vector["src"].as_str().expect("src").as_bytes());
            }
        }

        #[test]
        fn invalid_tokens_do_not_open() {
            let all = vectors(include_str!("../../tests/data/fernet-spec/invalid.json"));
            assert!(all.len() >= 8);
            for vector in all {
                let what = vector["desc"].as_str().expect("desc");
                let error = decrypt(&vector, vector["ttl_sec"].as_u64()).expect_err(what);
                let expected = match what {
                    "far-future TS (unacceptable clock skew)" => BearerError::MadeInFuture,
                    "expired TTL" => BearerError::TooOld,
                    _ => BearerError::NotAuthentic,
                };
                assert_eq!(error, expected, "{what}");
            }
        }

        /// Key, time, initialization vector and text determine the token. So a token that opens and contains the stated
        /// time and vector is the expected one.
        #[test]
        fn generated_tokens_match_the_vectors() {
            let all = vectors(include_str!("../../tests/data/fernet-spec/generate.json"));
            assert!(!all.is_empty());
            for vector in all {
                let opened = decrypt(&vector, Some(60)).expect("opens");
                assert_eq!(opened, vector["src"].as_str().expect("src").as_bytes());
                let bytes = URL_SAFE.decode(vector["token"].as_str().expect("token")).expect("base64");
                assert_eq!(bytes[1..9], unix(vector["now"].as_str().expect("now")).to_be_bytes());
                let iv: Vec<u8> = serde_json::from_value(vector["iv"].clone()).expect("bytes");
                assert_eq!(bytes[9..25], iv);
            }
        }
    }
}
