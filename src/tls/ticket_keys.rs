//! Keys of TLS session tickets that replicas share, so that a client can resume its session with each of them. It does
//! not know when the file is read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use crate::base::input_file;
use crate::config::options::TLS;
use crate::tls::TlsError;

const CREATE_KEY: &str = "create one with `openssl rand -base64 32`";

const KEY_LENGTH: usize = 32;
const NAME_LENGTH: usize = 16;

/// Time for which clients may use a ticket, in seconds.
const TICKET_LIFETIME: u32 = 12 * 60 * 60;

/// The keys of `tls.ticket_keys_file`: one on each line, base64 of 32 random bytes. The first one encrypts; all decrypt,
/// so that the previous key stays valid after a rotation.
pub struct TicketKeys {
    keys: Arc<[TicketKey]>,
    /// What the sessions depend on besides the key.
    ///
    /// SECURITY: a resumed session is not verified again, so a ticket is valid only with the same client authorities.
    context: [u8; 32],
}

struct TicketKey {
    /// Identifies the key in a ticket, and does not reveal it.
    name: [u8; NAME_LENGTH],
    key: RandomizedNonceKey,
}

impl TicketKeys {
    /// Reads the keys. `context` has everything that a session depends on.
    pub fn load(path: &Path, context: &[u8]) -> Result<TicketKeys, TlsError> {
        let error = |reason: String| TlsError::File {
            option: TLS.ticket_keys_file.key,
            kind: "ticket key",
            path: path.to_owned(),
            reason,
        };
        let text = input_file::read_text(path).map_err(|reason| error(reason.to_string()))?;
        TicketKeys::parse(&text, context).map_err(error)
    }

    /// The same keys for sessions that depend on `context`.
    pub fn with_context(&self, context: &[u8]) -> TicketKeys {
        TicketKeys { keys: Arc::clone(&self.keys), context: sha256(context) }
    }

    fn parse(text: &str, context: &[u8]) -> Result<TicketKeys, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let keys = lines.map(|(index, line)| {
            // SECURITY: the message does not contain the line.
            TicketKey::parse(line.trim()).ok_or(format!("line {} is not base64 of 32 bytes; {CREATE_KEY}", index + 1))
        });
        let keys: Arc<[_]> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err(format!("the file is empty; {CREATE_KEY}"));
        }
        Ok(TicketKeys { keys, context: sha256(context) })
    }
}

impl TicketKey {
    fn parse(line: &str) -> Option<TicketKey> {
        let bytes = Zeroizing::new(STANDARD.decode(line).ok().filter(|bytes| bytes.len() == KEY_LENGTH)?);
        let hash = sha256(&[b"the name of a ticket key ", &bytes[..]].concat());
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()?;
        Some(TicketKey { name: hash[..NAME_LENGTH].try_into().expect("16 bytes"), key })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("32 bytes")
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let TicketKey { name, key } = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.seal_in_place_append_tag(Aad::from(&self.context), &mut sealed).ok()?;
        Some([&name[..], nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LENGTH)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let TicketKey { key, .. } = self.keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length = key.open_in_place(nonce, Aad::from(&self.context), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl PartialEq for TicketKeys {
    fn eq(&self, other: &TicketKeys) -> bool {
        let names = |keys: &TicketKeys| keys.keys.iter().map(|key| key.name).collect::<Vec<_>>();
        names(self) == names(other) && self.context == other.context
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKeys({})", self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> String {
        STANDARD.encode([byte; KEY_LENGTH])
    }

    fn keys(text: &str, context: &str) -> TicketKeys {
        TicketKeys::parse(text, context.as_bytes()).expect("valid")
    }

    #[test]
    fn replicas_accept_the_tickets_of_each_other_until_the_key_is_removed() {
        let old = keys(&key(1), "");
        let ticket = old.encrypt(b"a session").expect("encrypted");
        let opened = |text: &str| keys(text, "").decrypt(&ticket);
        assert_eq!(opened(&key(1)).as_deref(), Some(&b"a session"[..]));
        assert_eq!(opened(&format!("{}\n\n {} \n", key(2), key(1))).as_deref(), Some(&b"a session"[..]));
        assert_eq!(opened(&key(2)), None, "removed");
        let rotated = keys(&format!("{}\n{}", key(2), key(1)), "");
        assert_eq!(old.decrypt(&rotated.encrypt(b"x").expect("encrypted")), None, "the first key encrypts");
        assert!(rotated != old && old == keys(&key(1), ""));
    }

    #[test]
    fn forged_tickets_and_those_of_other_authorities_are_rejected() {
        let keys_of = |context: &str| keys(&key(1), context);
        let ticket = keys_of("authority").encrypt(b"a session").expect("encrypted");
        assert!(keys_of("authority").decrypt(&ticket).is_some());
        assert!(keys_of("other authority").decrypt(&ticket).is_none());
        assert!(keys_of("authority").with_context(b"other authority").decrypt(&ticket).is_none());
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert!(keys_of("authority").decrypt(&forged).is_none(), "byte {at}");
            assert!(keys_of("authority").decrypt(&ticket[..at]).is_none(), "{at} bytes");
        }
    }

    #[test]
    fn invalid_keys_are_reported_without_the_key() {
        for (text, expected) in
            [("", "empty"), ("\n \n", "empty"), ("c2hvcnQ=", "line 1"), (&format!("{}\nsekrit", key(1)), "line 2")]
        {
            let error = TicketKeys::parse(text, b"").expect_err(text);
            assert!(error.contains(expected) && !error.contains("sekrit"), "{error}");
        }
        assert_eq!(format!("{:?}", keys(&key(1), "")), "TicketKeys(1)");
    }
}
