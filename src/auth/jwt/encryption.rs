//! Decrypts encrypted JWTs (JWE, RFC 7516) in their compact form. What is inside must be a signed token, which `issuer`
//! verifies: everyone who has the public key can encrypt.
//!
//! The cryptography is that of `aws-lc-rs`; here are only the five parts and the choice of the algorithm.

use std::path::Path;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::key_wrap::{self, AesBlockCipher, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::input_file;

/// The key of the gateway for tokens of an issuer.
pub enum DecryptionKey {
    /// The private key of a pair.
    Rsa(OaepPrivateDecryptingKey),
    /// A key that the issuer shares with the gateway.
    Shared(Zeroizing<Vec<u8>>),
}

/// The lengths of shared keys in bytes: those of the content keys that are supported.
const SHARED_KEY_LENGTHS: [usize; 3] = [16, 32, 64];

/// The token cannot be decrypted.
///
/// SECURITY: one error for every cause. Which step failed could be used to decrypt a token of a different client.
#[derive(Clone, Copy, Debug)]
pub struct UndecryptableToken;

#[derive(Deserialize)]
struct JweHeader {
    alg: String,
    enc: String,
    zip: Option<serde_json::Value>,
    crit: Option<serde_json::Value>,
}

/// Whether this is the first part of an encrypted token.
pub fn is_header(part: &[u8]) -> bool {
    parse_header(part).is_some()
}

fn parse_header(part: &[u8]) -> Option<JweHeader> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

impl DecryptionKey {
    /// Reads an RSA key in PEM (PKCS #8), or a shared key in base64.
    pub fn read(path: &Path) -> Result<DecryptionKey, String> {
        let at = path.display();
        let text = input_file::read_text(path);
        let text = text.map_err(|error| format!("cannot read decryption_key_file {at}: {error}"))?;
        if let Some(key) = parse_shared_key(&text) {
            return Ok(DecryptionKey::Shared(key));
        }
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| {
            format!(
                "decryption_key_file {at} has neither a private key in PEM nor 16, 32 or 64 bytes in base64: {error}"
            )
        })?;
        let PrivateKeyDer::Pkcs8(key) = &key else {
            return Err(format!("decryption_key_file {at} must be in PKCS #8: convert it with `openssl pkcs8 -topk8`"));
        };
        let key = PrivateDecryptingKey::from_pkcs8(key.secret_pkcs8_der())
            .map_err(|_| format!("decryption_key_file {at} is not an RSA key of 2048 to 8192 bits"))?;
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| format!("decryption_key_file {at} is not usable"))?;
        Ok(DecryptionKey::Rsa(key))
    }

    /// The content of an encrypted token.
    pub fn decrypt(&self, token: &[u8]) -> Result<Zeroizing<Vec<u8>>, UndecryptableToken> {
        self.try_decrypt(token).ok_or(UndecryptableToken)
    }

    /// The key of the content (RFC 7518 section 4). `encrypted` is the second part of the token.
    ///
    /// SECURITY: the kind of the configured key decides which algorithms are possible, so a public key is never used as
    /// a shared one.
    fn content_key(&self, algorithm: &str, encrypted: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match (self, algorithm) {
            (DecryptionKey::Rsa(key), "RSA-OAEP") => open_oaep(key, &OAEP_SHA1_MGF1SHA1, encrypted),
            (DecryptionKey::Rsa(key), "RSA-OAEP-256") => open_oaep(key, &OAEP_SHA256_MGF1SHA256, encrypted),
            (DecryptionKey::Shared(key), "dir") => encrypted.is_empty().then(|| key.clone()),
            (DecryptionKey::Shared(key), "A128KW") => unwrap_key(&key_wrap::AES_128, key, encrypted),
            (DecryptionKey::Shared(key), "A256KW") => unwrap_key(&key_wrap::AES_256, key, encrypted),
            _ => None,
        }
    }

    fn try_decrypt(&self, token: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let parts: Vec<_> = token.split(|byte| *byte == b'.').collect();
        let [protected, key, nonce, ciphertext, tag] = parts[..] else { return None };
        let decode = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).ok();
        let header = parse_header(protected)?;
        // SECURITY: a small compressed text could expand to any size, and no extension is supported.
        if header.zip.is_some() || header.crit.is_some() {
            return None;
        }
        let content_key = &*self.content_key(&header.alg, &decode(key)?)?;
        let (nonce, ciphertext, tag) = (decode(nonce)?, decode(ciphertext)?, decode(tag)?);
        match header.enc.as_str() {
            "A128GCM" => open_gcm(&AES_128_GCM, content_key, &nonce, protected, [ciphertext, tag]),
            "A256GCM" => open_gcm(&AES_256_GCM, content_key, &nonce, protected, [ciphertext, tag]),
            "A128CBC-HS256" => open_cbc(16, content_key, &nonce, protected, [ciphertext, tag]),
            "A256CBC-HS512" => open_cbc(32, content_key, &nonce, protected, [ciphertext, tag]),
            _ => None,
        }
    }
}

fn open_oaep(
    key: &OaepPrivateDecryptingKey,
    algorithm: &'static OaepAlgorithm,
    encrypted: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(vec![0; key.min_output_size()]);
    let length = key.decrypt(algorithm, encrypted, &mut plain, None).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

/// AES key wrap (RFC 3394). It authenticates the key.
fn unwrap_key(cipher: &'static AesBlockCipher, key: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(vec![0; wrapped.len()]);
    let length = AesKek::new(cipher, key).ok()?.unwrap(wrapped, &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

/// 16, 32 or 64 bytes in base64, in either alphabet.
fn parse_shared_key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = Zeroizing::new(text.trim().replace('+', "-").replace('/', "_"));
    let key = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().map(Zeroizing::new)?;
    SHARED_KEY_LENGTHS.contains(&key.len()).then_some(key)
}

/// AES-GCM (RFC 7518 section 5.3).
fn open_gcm(
    algorithm: &'static aws_lc_rs::aead::Algorithm,
    key: &[u8],
    nonce: &[u8],
    protected: &[u8],
    [ciphertext, tag]: [Vec<u8>; 2],
) -> Option<Zeroizing<Vec<u8>>> {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
    if tag.len() != algorithm.tag_len() {
        return None;
    }
    let mut text = Zeroizing::new([ciphertext, tag].concat());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let length = key.open_in_place(nonce, Aad::from(protected), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

/// AES-CBC with HMAC (RFC 7518 section 5.2.2.2): the first half of the key authenticates, the second half decrypts.
fn open_cbc(
    half: usize,
    key: &[u8],
    nonce: &[u8],
    protected: &[u8],
    [mut ciphertext, tag]: [Vec<u8>; 2],
) -> Option<Zeroizing<Vec<u8>>> {
    let (mac_key, text_key) = key.split_at_checked(half).filter(|(_, rest)| rest.len() == half)?;
    let (mac, cipher) = if half == 16 { (hmac::HMAC_SHA256, &AES_128) } else { (hmac::HMAC_SHA512, &AES_256) };
    let bits = (protected.len() as u64 * 8).to_be_bytes();
    let expected = hmac::sign(&hmac::Key::new(mac, mac_key), &[protected, nonce, &ciphertext, &bits].concat());
    // SECURITY: verified before the padding is looked at, in constant time.
    if !bool::from(expected.as_ref()[..half].ct_eq(&tag)) {
        return None;
    }
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(cipher, text_key).ok()?).ok()?;
    let context = DecryptionContext::Iv128(FixedLength::from(<[u8; 16]>::try_from(nonce).ok()?));
    let text = key.decrypt(&mut ciphertext, context).ok()?;
    Some(Zeroizing::new(text.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The key and the tokens in `tests/data/jwe` were made by `jwcrypto` 1.5.
    fn fixtures() -> (DecryptionKey, BTreeMap<String, String>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/jwe");
        let tokens = std::fs::read(folder.join("tokens.json")).expect("read");
        (DecryptionKey::read(&folder.join("key.pem")).expect("a key"), serde_json::from_slice(&tokens).expect("JSON"))
    }

    #[test]
    fn tokens_of_a_different_implementation_are_decrypted() {
        let (key, tokens) = fixtures();
        let mut decrypted = 0;
        for (name, token) in &tokens {
            let text = key.decrypt(token.as_bytes()).ok();
            if name.contains("A192") || name == "zip" {
                assert!(text.is_none(), "{name} is not supported");
            } else {
                assert_eq!(text.as_deref().map(Vec::as_slice), Some(&b"header.claims.signature"[..]), "{name}");
                decrypted += 1;
            }
        }
        assert_eq!(decrypted, 8);
    }

    /// The keys and the tokens in `shared.json`, for keys of the issuer and the gateway, were made by `jwcrypto`.
    #[test]
    fn tokens_with_a_shared_key_are_decrypted() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        let tokens = include_str!("../../../tests/data/jwe/shared.json");
        let tokens: BTreeMap<String, [String; 2]> = serde_json::from_str(tokens).expect("JSON");
        assert_eq!(tokens.len(), 9);
        let (rsa, rsa_tokens) = fixtures();
        for (name, [key, token]) in &tokens {
            std::fs::write(&file, format!("{key}\n")).expect("written");
            let shared = DecryptionKey::read(&file).expect("a key");
            let text = shared.decrypt(token.as_bytes()).ok();
            assert_eq!(text.as_deref().map(Vec::as_slice), Some(&b"header.claims.signature"[..]), "{name}");
            assert!(rsa.decrypt(token.as_bytes()).is_err(), "{name}");
            assert!(rsa_tokens.values().all(|other| shared.decrypt(other.as_bytes()).is_err()), "{name}");
            let others = tokens.values().filter(|[other, _]| other != key);
            assert!(others.into_iter().all(|[_, other]| shared.decrypt(other.as_bytes()).is_err()), "{name}");
            changed_tokens_are_rejected(&shared, name, token);
        }
    }

    #[test]
    fn a_changed_token_is_not_decrypted() {
        let (key, tokens) = fixtures();
        for (name, token) in &tokens {
            changed_tokens_are_rejected(&key, name, token);
        }
    }

    fn changed_tokens_are_rejected(key: &DecryptionKey, name: &str, token: &str) {
        for part in 0..5 {
            let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
            let mut bytes = URL_SAFE_NO_PAD.decode(&parts[part]).expect("base64");
            match bytes.last_mut() {
                Some(last) => *last ^= 1,
                // The second part is empty without a wrapped key.
                None => bytes.push(1),
            }
            let was_empty = parts[part].is_empty();
            parts[part] = URL_SAFE_NO_PAD.encode(&bytes);
            assert!(key.decrypt(parts.join(".").as_bytes()).is_err(), "{name} {part}");
            if was_empty {
                continue;
            }
            parts[part].clear();
            assert!(key.decrypt(parts.join(".").as_bytes()).is_err(), "{name} without part {part}");
        }
    }

    #[test]
    fn only_an_rsa_key_in_pkcs8_is_accepted() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |text: &str| {
            let path = folder.path().join("key.pem");
            std::fs::write(&path, text).expect("written");
            DecryptionKey::read(&path).map(drop)
        };
        let ec = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        for (text, expected) in [
            ("", "neither a private key in PEM nor"),
            ("c2hvcnQ=", "neither a private key in PEM nor"),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "must be in PKCS #8"),
            (ec.as_str(), "is not an RSA key"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }
}
