//! JWTs of identity providers, in `x-jwt-token`.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::support::client::{JSON, Response};
use crate::support::gateway::{Gateway, IMPERSONATE};
use crate::support::idp::{ISSUER, Idp, SigningKey, claims};
use crate::support::upstream::Upstream;
use crate::support::wait_until;

/// The gateways' clock, in seconds of Unix time.
const NOW: u64 = 1_900_000_000;

struct Setup {
    idp: Idp,
    key: SigningKey,
    upstream: Upstream,
    gateway: Gateway,
}

impl Setup {
    fn new(issuer: &str, options: &[(&str, &str)]) -> Setup {
        let key = SigningKey::new("one");
        let idp = Idp::start(&[&key]);
        let upstream = Upstream::start();
        let issuers = idp.option(issuer);
        let options = [options, &[("AUTH_JWT_ISSUERS", issuers.as_str())]].concat();
        let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
        Setup { idp, key, upstream, gateway }
    }

    fn token(&self, change: &Value) -> String {
        self.key.sign(&claims(NOW, change))
    }

    fn get(&self, token: &str, more: &[(&str, &str)]) -> Response {
        let headers = [&[JSON, ("x-jwt-token", token)], more].concat();
        self.gateway.client().send("GET /timbr/api/x", &headers, b"")
    }
}

#[test]
fn a_jwt_is_forwarded_unchanged_with_its_user() {
    let setup = Setup::new("", &[]);
    let token = setup.token(&json!({}));
    assert_eq!(setup.get(&token, &[("x-jwt-tenant-id", "acme")]).status, 200);
    let seen = setup.upstream.only_request();
    assert_eq!((seen.header("x-jwt-token"), seen.header("x-jwt-tenant-id")), (token.as_str(), "acme"));
    assert_eq!((seen.header("x-api-key"), seen.header("x-forwarded-user")), ("", "alice@example.com"));
}

#[test]
fn headers_beside_a_jwt_are_forwarded_if_they_agree_with_it() {
    let setup = Setup::new("", &[]);
    let token = setup.token(&json!({"nonce": "n-1"}));
    let headers = [("x-jwt-issuer", ISSUER), ("x-jwt-client-id", "timbr"), ("x-jwt-nonce", "n-1")];
    assert_eq!(setup.get(&token, &headers).status, 200);
    let seen = setup.upstream.only_request();
    for (name, value) in headers {
        assert_eq!(seen.header(name), value);
        // The token is cached now.
        let refused = setup.get(&token, &[(name, "other")]);
        assert_eq!((refused.status, refused.reason().as_str()), (401, "jwt_unacceptable"), "{name}");
        assert!(refused.text().contains(name), "{}", refused.text());
        assert_eq!(setup.get(&token, &[(name, value), (name, value)]).reason(), "field_repeated");
        assert_eq!(setup.get(&token, &[(&name.replace('-', "_"), value)]).reason(), "field_ambiguous");
    }
    // Without a JWT they mean nothing.
    let key = setup.gateway.token();
    let headers = [&[JSON, ("x-api-key", key.as_str())], &headers[..]].concat();
    assert_eq!(setup.gateway.client().send("GET /timbr/api/x", &headers, b"").status, 200);
    let log = setup.upstream.log();
    let seen = log.last().expect("forwarded");
    assert!(!format!("{seen:?}").contains("x-jwt-"), "{seen:?}");
}

#[test]
fn without_an_issuer_the_client_learns_why_its_jwt_is_rejected() {
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.address(), &[("LIMITS_FAILURES_PER_ADDRESS", "1")]);
    let get = |headers: &[(&str, &str)]| gateway.client().send("GET /timbr/api/x", headers, b"");
    for _ in 0..3 {
        let refused = get(&[JSON, ("x-jwt-token", "a.b.c")]);
        assert_eq!((refused.status, refused.reason().as_str()), (401, "jwt_not_configured"), "not a failed guess");
        assert!(refused.text().contains("JWT"), "{}", refused.text());
    }
    assert_eq!(get(&[JSON]).reason(), "api_key_missing");
    assert!(upstream.log().is_empty());
}

#[test]
fn an_issuer_can_require_a_type_and_claims() {
    let setup = Setup::new(", typ: [at+jwt], required_claims: {azp: 'web-*'}", &[]);
    let sign = |typ: Option<&str>, azp: &str| {
        let mut header = Header::new(Algorithm::ES256);
        (header.typ, header.kid) = (typ.map(str::to_owned), Some("one".to_owned()));
        setup.key.sign_with(&header, &claims(NOW, &json!({"azp": azp})))
    };
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt"] {
        assert_eq!(setup.get(&sign(Some(typ), "web-1"), &[]).status, 200, "{typ}");
    }
    for (typ, azp) in [(None, "web-1"), (Some("JWT"), "web-1"), (Some("at+jwt"), "other")] {
        assert_eq!(setup.get(&sign(typ, azp), &[]).reason(), "jwt_unacceptable", "{typ:?} {azp}");
    }
}

#[test]
fn users_of_two_issuers_are_kept_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let entry = |issuer: &str, key: &SigningKey, more: &str| {
        let file = folder.path().join(issuer);
        std::fs::write(&file, json!({"keys": [key.public]}).to_string()).expect("written");
        let file = file.display();
        format!("{{issuer: {issuer}, jwks_file: '{file}', audiences: timbr, user_claim: email, {more}}}")
    };
    let (staff, partners) = (SigningKey::new("one"), SigningKey::new("two"));
    let (file, public) = encryption_key();
    let issuers = format!(
        "[{}, {}]",
        entry("staff", &staff, &format!("users: '*@example.com', decryption_key_file: '{file}'")),
        entry("partners", &partners, &format!("user_prefix: partner/, decryption_key_file: '{file}'"))
    );
    let upstream = Upstream::start();
    let options = [("AUTH_JWT_ISSUERS", issuers.as_str())];
    let gateway = Gateway::start_at(&format!("http://{}", upstream.address()), &options, NOW);
    let get = |key: &SigningKey, issuer: &str, user: &str| {
        let token = key.sign(&claims(NOW, &json!({"iss": issuer, "email": user})));
        // Both issuers encrypt for the same key.
        let users = [encrypt(&token, &public), token].map(|token| {
            let response = gateway.client().send("GET /timbr/api/x", &[JSON, ("x-jwt-token", &token)], b"");
            (response.status == 200)
                .then(|| upstream.log().last().expect("forwarded").header("x-forwarded-user").to_owned())
        });
        assert_eq!(users[0], users[1]);
        users[0].clone()
    };
    assert_eq!(get(&staff, "staff", "a@example.com").as_deref(), Some("a@example.com"));
    assert_eq!(get(&partners, "partners", "a@example.com").as_deref(), Some("partner/a@example.com"));
    assert_eq!(get(&staff, "staff", "partner/a@example.org"), None);
}

#[test]
fn a_rate_limit_can_name_groups_of_a_jwt() {
    let rules = "[{name: agents, users: [bob], groups: agents, requests_per_second: 0.01, burst: 1}]";
    let setup = Setup::new(", groups_claims: realm_access.roles", &[("LIMITS_RULES", rules)]);
    let member = |name: &str, groups: &[&str]| setup.token(&json!({"email": name, "realm_access": {"roles": groups}}));
    for (name, groups, second) in [
        ("alice", &["agents"][..], 429),
        ("bob", &[][..], 429),
        ("carol", &["others"][..], 200),
        ("dave", &["agents"], 429),
    ] {
        let token = member(name, groups);
        let statuses = [(); 2].map(|()| setup.get(&token, &[]).status);
        assert_eq!(statuses, [200, second], "{name}");
    }
}

#[test]
fn rules_can_name_groups_of_a_jwt() {
    let rules = "[{groups: analysts, routes: api}, {users: '*', methods: HEAD}]";
    let options = [
        ("AUTHORIZATION_MODE", "enforce"),
        ("AUTHORIZATION_RULES", rules),
        ("IMPERSONATION_RULES", "[{groups: leads, act_as: '*'}]"),
        ("AUTH_TRUST_SALT_HOLDER", "true"),
    ];
    let setup = Setup::new(", groups_claims: realm_access.roles", &options);
    let member = |groups: &[&str]| setup.token(&json!({"realm_access": {"roles": groups}}));
    assert_eq!(setup.get(&member(&["analysts"]), &[]).status, 200);
    for groups in [&[][..], &["others"]] {
        assert_eq!(setup.get(&member(groups), &[]).reason(), "not_authorized", "{groups:?}");
    }
    let act_as = ("x-api-impersonate-user", "bob");
    assert_eq!(setup.get(&member(&["analysts"]), &[act_as]).status, 403, "no rule allows the impersonation");
    let acting = setup.get(&member(&["analysts", "leads"]), &[act_as]);
    assert_eq!(acting.reason(), "not_authorized", "the groups of the caller grant nothing to bob");
    assert_eq!(setup.upstream.log().len(), 1);
}

#[test]
fn under_impersonate_the_service_key_replaces_the_jwt() {
    let setup = Setup::new("", &IMPERSONATE);
    let token = setup.token(&json!({}));
    assert_eq!(setup.get(&token, &[("x-jwt-tenant-id", "acme"), ("Cookie", "a=b")]).status, 200);
    let seen = setup.upstream.only_request();
    let user = seen.header("x-api-impersonate-user");
    assert_eq!((seen.header("x-api-key"), user), ("tk_service", "alice@example.com"));
    let shown = format!("{seen:?}");
    assert!(!shown.contains(&token) && !shown.contains("acme") && !shown.contains("a=b"), "{shown}");
}

#[test]
fn a_request_with_two_credentials_is_rejected() {
    let setup = Setup::new("", &[]);
    let (token, key) = (setup.token(&json!({})), setup.gateway.token());
    assert_eq!(setup.get(&token, &[("x-api-key", &key)]).rejection(), (400, "credentials_ambiguous".into()));
    for (name, reason) in [("x-jwt-token", "field_repeated"), ("x_jwt_token", "field_ambiguous")] {
        let twice = setup.get(&token, &[(name, &token)]);
        assert_eq!((twice.status, twice.reason().as_str()), (400, reason));
    }
    assert_eq!(setup.get(&token, &[("Connection", "x-jwt-token")]).status, 400);
    assert!(setup.upstream.log().is_empty());
}

#[test]
fn a_jwt_without_a_valid_signature_is_rejected() {
    let setup = Setup::new("", &[("LIMITS_FAILURES_PER_ADDRESS", "0")]);
    let good = claims(NOW, &json!({}));
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = setup.token(&json!({}));
    let [header, _, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    let hmac = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        encode(&header, &good, &EncodingKey::from_secret(secret)).expect("signed")
    };
    let root = claims(NOW, &json!({"email": "root"}));
    for (token, expected) in [
        (format!("{}.{}.", part(&json!({"alg": "none"})), part(&good)), "unknown algorithm"),
        (format!("{}.{}.", part(&json!({"alg": "None", "typ": "JWT"})), part(&good)), "unknown algorithm"),
        // The public key as HMAC secret, in two encodings.
        (hmac(setup.key.public.to_string().as_bytes()), "algorithm is not allowed"),
        (hmac(setup.key.public["x"].as_str().expect("text").as_bytes()), "algorithm is not allowed"),
        (format!("{header}.{}.{signature}", part(&root)), "signature is invalid"),
        (format!("{header}.{}.", part(&good)), "signature is invalid"),
        (SigningKey::new("one").sign(&good), "signature is invalid"),
        (SigningKey::new("one").sign(&claims(NOW, &json!({"iss": "https://evil"}))), "issuer is unknown"),
        // A key URL in the token itself is never used.
        (
            format!(
                "{}.{}.{signature}",
                part(&json!({"alg": "ES256", "jku": format!("http://{}/keys", setup.upstream.address())})),
                part(&good)
            ),
            "signature is invalid",
        ),
        (format!("{header}.{}", part(&good)), "form"),
        ("nonsense".to_owned(), "form"),
    ] {
        let refused = setup.get(&token, &[]);
        assert_eq!((refused.status, refused.reason().as_str()), (401, "jwt_invalid"), "{token}");
        assert!(refused.text().contains(expected), "{expected}: {}", refused.text());
    }
    assert!(setup.upstream.log().is_empty());
}

#[test]
fn a_jwt_with_unacceptable_claims_is_rejected() {
    let setup = Setup::new(", tenants: [acme]", &[]);
    let tenant = ("x-jwt-tenant-id", "acme");
    for (change, tenant, reason) in [
        (json!({"exp": NOW - 31}), Some(tenant), "jwt_expired"),
        (json!({"aud": "a different user"}), Some(tenant), "jwt_unacceptable"),
        (json!({"nbf": NOW + 60}), Some(tenant), "jwt_unacceptable"),
        (json!({"email": "a\r\nx-api-key: b"}), Some(tenant), "jwt_unacceptable"),
        (json!({}), Some(("x-jwt-tenant-id", "other")), "jwt_unacceptable"),
        (json!({}), None, "jwt_unacceptable"),
    ] {
        let refused = setup.get(&setup.token(&change), &tenant.into_iter().collect::<Vec<_>>());
        assert_eq!((refused.status, refused.reason().as_str()), (401, reason), "{change} {tenant:?}");
    }
    assert!(setup.upstream.log().is_empty());
    let token = setup.token(&json!({}));
    assert_eq!(setup.get(&token, &[tenant]).status, 200);
    assert_eq!(setup.get(&token, &[]).reason(), "jwt_unacceptable", "although the token is cached");
    setup.gateway.clock.advance(Duration::from_secs(3600 + 31));
    assert_eq!(setup.get(&token, &[tenant]).reason(), "jwt_expired");
}

#[test]
fn a_new_key_is_fetched_once_and_a_withdrawn_key_is_rejected() {
    let setup = Setup::new("", &[("LIMITS_FAILURES_PER_ADDRESS", "0")]);
    let old = setup.token(&json!({}));
    assert_eq!(setup.get(&old, &[]).status, 200);
    assert_eq!(setup.idp.fetched(), 1);

    let next = SigningKey::new("two");
    setup.idp.publish(&[&next]);
    assert_eq!(setup.get(&old, &[]).status, 200, "the change is not known yet");
    let new = next.sign(&claims(NOW, &json!({})));
    // Its signature cannot be checked yet, so it is neither accepted nor rejected.
    assert_try_again(&setup.get(&new, &[]));
    setup.gateway.clock.advance(Duration::from_secs(10));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(setup.get(&new, &[]).status, 200));
        }
    });
    assert_eq!(setup.idp.fetched(), 2, "all wait for the same fetch");
    assert_try_again(&setup.get(&old, &[]));

    for number in 0..20 {
        let made_up = SigningKey::new(&format!("key-{number}")).sign(&claims(NOW, &json!({})));
        assert_try_again(&setup.get(&made_up, &[]));
    }
    assert_eq!(setup.idp.fetched(), 2, "unknown key ids cause no further fetch");
    for (number, token) in [&old, &SigningKey::new("another").sign(&claims(NOW, &json!({})))].into_iter().enumerate() {
        setup.gateway.clock.advance(Duration::from_secs(10));
        assert_eq!(setup.get(token, &[]).reason(), "jwt_invalid", "a fetch has confirmed that the key is unknown");
        assert_eq!(setup.idp.fetched(), 3 + number);
    }
}

#[test]
fn a_token_with_an_unknown_key_is_no_failure_while_newer_keys_are_possible() {
    let setup = Setup::new("", &[("LIMITS_FAILURES_PER_ADDRESS", "1"), ("AUTH_JWT_REFRESH", "1h")]);
    assert_eq!(setup.get(&setup.token(&json!({})), &[]).status, 200);
    let next = SigningKey::new("two");
    let new = next.sign(&claims(NOW, &json!({})));
    for _ in 0..5 {
        assert_try_again(&setup.get(&new, &[]));
    }
    // The issuer is unavailable when the keys may be fetched again.
    setup.idp.publish(&[]);
    setup.gateway.clock.advance(Duration::from_secs(10));
    assert_try_again(&setup.get(&new, &[]));
    setup.idp.publish(&[&next]);
    setup.gateway.clock.advance(Duration::from_secs(10));
    assert_eq!(setup.get(&new, &[]).status, 200);
    // A wrong signature is a failure at once.
    let forged = SigningKey::new("two").sign(&claims(NOW, &json!({})));
    assert_eq!(setup.get(&forged, &[]).reason(), "jwt_invalid");
    assert_eq!(setup.get(&forged, &[]).reason(), "too_many_failures");
    assert!(setup.upstream.log().len() == 2);
}

fn assert_try_again(response: &Response) {
    assert_eq!((response.status, response.reason().as_str()), (503, "jwt_key_unknown"));
    assert!(response.header("retry-after").parse::<u64>().is_ok_and(|wait| (1..=11).contains(&wait)));
}

#[test]
fn without_keys_a_jwt_is_neither_accepted_nor_rejected() {
    let setup = Setup::new("", &[("AUTH_JWT_REFRESH", "50ms")]);
    let token = setup.token(&json!({}));
    assert_eq!(setup.get(&token, &[]).status, 200);
    setup.idp.publish(&[]);
    wait_until("the failure is reported", || setup.gateway.metric("timbr_gateway_issuers_unusable") == 1.0);
    assert_eq!(setup.get(&token, &[]).status, 200, "the previous keys stay active");
    setup.gateway.clock.advance(Duration::from_secs(24 * 60 * 60));
    let token = setup.key.sign(&claims(NOW + 24 * 60 * 60, &json!({})));
    let refused = setup.get(&token, &[]);
    assert_eq!((refused.status, refused.reason().as_str()), (503, "jwt_keys_unavailable"));
    assert_ne!(refused.header("retry-after"), "");
    setup.idp.publish(&[&setup.key]);
    wait_until("the keys are available again", || setup.get(&token, &[]).status == 200);
}

#[test]
fn secrets_and_key_files_are_supported() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = "a secret of thirty-two bytes and more";
    let key = SigningKey::new("one");
    let (keys_file, secret_file) = (folder.path().join("keys"), folder.path().join("secret"));
    std::fs::write(&keys_file, json!({"keys": [key.public]}).to_string()).expect("written");
    std::fs::write(&secret_file, secret).expect("written");
    let issuers = format!(
        "[{{issuer: '{ISSUER}', audiences: timbr, user_claim: email, users: '*', jwks_file: '{}'}}, {{issuer: internal, \
         audiences: timbr, user_claim: email, users: '*', secret_file: '{}', algorithms: HS256}}]",
        keys_file.display(),
        secret_file.display()
    );
    let upstream = Upstream::start();
    let url = format!("http://{}", upstream.address());
    let options = [("AUTH_JWT_ISSUERS", issuers.as_str()), ("LIMITS_FAILURES_PER_ADDRESS", "0")];
    let gateway = Gateway::start_at(&url, &options, NOW);
    let get = |token: &str| gateway.client().send("GET /timbr/api/x", &[JSON, ("x-jwt-token", token)], b"");
    assert_eq!(get(&key.sign(&claims(NOW, &json!({})))).status, 200);
    let hmac = |claims: &Value, secret: &str| {
        encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).expect("signed")
    };
    let internal = claims(NOW, &json!({"iss": "internal"}));
    assert_eq!(get(&hmac(&internal, secret)).status, 200);
    assert_eq!(get(&hmac(&internal, "another secret")).reason(), "jwt_invalid");
    assert_eq!(get(&hmac(&claims(NOW, &json!({})), secret)).reason(), "jwt_invalid", "not valid for the other issuer");

    let next = SigningKey::new("two");
    std::fs::write(&keys_file, json!({"keys": [next.public]}).to_string()).expect("written");
    let token = next.sign(&claims(NOW, &json!({})));
    wait_until("the file is reloaded", || get(&token).status == 200);

    let rotated = "another secret of thirty-two bytes";
    std::fs::write(&secret_file, rotated).expect("written");
    wait_until("the secret is reloaded", || get(&hmac(&internal, rotated)).status == 200);
    assert_eq!(get(&hmac(&internal, secret)).reason(), "jwt_invalid", "the old secret signs no valid tokens");
}

#[test]
fn the_keys_are_found_by_discovery() {
    let key = SigningKey::new("one");
    let idp = Idp::start(&[&key]);
    let upstream = Upstream::start();
    let start = |path: &str| {
        let url = format!("http://{}{path}", idp.address());
        let issuers = format!("[{{issuer: '{ISSUER}', discovery_url: '{url}', audiences: timbr, user_claim: email}}]");
        Gateway::start_at(&format!("http://{}", upstream.address()), &[("AUTH_JWT_ISSUERS", &issuers)], NOW)
    };
    let token = key.sign(&claims(NOW, &json!({})));
    let get = |gateway: &Gateway| gateway.client().send("GET /timbr/api/x", &[JSON, ("x-jwt-token", &token)], b"");
    assert_eq!(get(&start("/discovery")).status, 200);
    assert_eq!(get(&start("/discovery-of-the-wrong-issuer")).rejection(), (503, "jwt_keys_unavailable".into()));
    assert_eq!(upstream.log().len(), 1);
}

/// A token encrypted with RSA-OAEP and A256GCM.
fn encrypt(content: &str, key: &PublicEncryptingKey) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RSA-OAEP","enc":"A256GCM","cty":"JWT"}"#);
    let content_key = [7; 32];
    let oaep = OaepPublicEncryptingKey::new(key.clone()).expect("a key");
    let mut wrapped = vec![0; oaep.ciphertext_size()];
    oaep.encrypt(&OAEP_SHA1_MGF1SHA1, &content_key, &mut wrapped, None).expect("encrypted");
    let mut text = content.as_bytes().to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &content_key).expect("a key"));
    let nonce = Nonce::assume_unique_for_key([1; 12]);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(header.as_bytes()), &mut text).expect("encrypted");
    let parts = [&wrapped[..], &[1; 12], &text, tag.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{header}.{}", parts.join("."))
}

/// The file of a private key, and the public one.
fn encryption_key() -> (String, PublicEncryptingKey) {
    let file = format!("{}/tests/data/jwe/key.pem", env!("CARGO_MANIFEST_DIR"));
    let pem = std::fs::read(&file).expect("read");
    let der = PrivateKeyDer::from_pem_slice(&pem).expect("a key");
    (file, PrivateDecryptingKey::from_pkcs8(der.secret_der()).expect("a key").public_key())
}

#[test]
fn an_encrypted_jwt_is_decrypted_verified_and_forwarded_unchanged() {
    let (file, public) = encryption_key();
    let setup = Setup::new(&format!(", decryption_key_file: '{file}'"), &[("LIMITS_FAILURES_PER_ADDRESS", "6")]);
    let signed = setup.token(&json!({}));
    let token = encrypt(&signed, &public);
    for _ in 0..2 {
        assert_eq!(setup.get(&token, &[]).status, 200);
    }
    let log = setup.upstream.log();
    assert!(log.iter().all(|seen| seen.header("x-jwt-token") == token));
    assert!(log.iter().all(|seen| seen.header("x-forwarded-user") == "alice@example.com"));
    assert_eq!(setup.get(&signed, &[]).status, 200, "encryption is not required");
    let claims = claims(NOW, &json!({"email": "root"}));
    for (content, expected) in [
        (claims.to_string(), "not signed"),
        (SigningKey::new("one").sign(&claims), "signature is invalid"),
        (format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), "e30"), "unknown algorithm"),
        (encrypt(&signed, &public), "not signed"),
    ] {
        let refused = setup.get(&encrypt(&content, &public), &[]);
        assert_eq!((refused.status, refused.reason().as_str()), (401, "jwt_invalid"), "{content}");
        assert!(refused.text().contains(expected), "{expected}: {}", refused.text());
    }
    for _ in 0..2 {
        let refused = setup.get(&format!("{token}A"), &[]);
        assert!(refused.text().contains("cannot be decrypted"), "{}", refused.text());
    }
    assert_eq!(setup.get(&encrypt(&signed, &public), &[]).reason(), "too_many_failures", "nothing is decrypted now");
    assert_eq!(setup.get(&token, &[]).status, 200, "a verified token keeps working");
}

#[test]
fn an_encrypted_jwt_is_denied_by_its_text() {
    let (file, public) = encryption_key();
    let own = Setup::new(&format!(", decryption_key_file: '{file}'"), &[]);
    let forwarding = Setup::new("", &[("AUTH_JWT_UNKNOWN_ISSUERS", "forward")]);
    let deny = |setup: &Setup, token: &str| {
        let denied = setup
            .gateway
            .command_with(&["tokens", "revoke", "--token-stdin", "--deny-for", "1h"], &format!("{token}\n"));
        (denied.status.code(), String::from_utf8(denied.stderr).expect("text"))
    };
    let signed = own.token(&json!({}));
    let token = encrypt(&signed, &public);
    for setup in [&own, &forwarding] {
        assert_eq!(setup.get(&token, &[]).status, 200);
        assert_eq!(deny(setup, &token), (Some(0), String::new()));
        assert_eq!(setup.get(&token, &[]).reason(), "credential_denied");
    }
    for same in [encrypt(&signed, &public), signed] {
        assert_eq!(own.get(&same, &[]).reason(), "credential_denied");
    }
    let (code, text) = deny(&own, &format!("{token}A"));
    assert!(code == Some(1) && text.contains("take the fingerprint from the access log"), "{text}");
    assert_eq!(deny(&own, "a.key.with.four.dots").0, Some(0));
}

#[test]
fn jwts_of_unknown_issuers_are_forwarded_if_the_operator_says_so() {
    let options = [
        ("AUTH_JWT_UNKNOWN_ISSUERS", "forward"),
        ("AUTHORIZATION_MODE", "enforce"),
        ("AUTHORIZATION_RULES", "[{unknown_users: true, methods: GET}]"),
        ("UPSTREAM_CREDENTIAL", "impersonate"),
        ("UPSTREAM_API_KEY", "tk_service"),
        ("AUTH_TRUST_SALT_HOLDER", "true"),
        ("LIMITS_FAILURES_PER_ADDRESS", "1"),
    ];
    let setup = Setup::new("", &options);
    let other = SigningKey::new("two").sign(&claims(NOW, &json!({"iss": "https://other"})));
    for token in [other.as_str(), "a.b.c.d.e"] {
        assert_eq!(setup.get(token, &[("x-jwt-tenant-id", "acme")]).status, 200);
        let log = setup.upstream.log();
        let seen = log.last().expect("forwarded");
        assert_eq!((seen.header("x-jwt-token"), seen.header("x-jwt-tenant-id")), (token, "acme"));
        assert_eq!((seen.header("x-api-key"), seen.header("x-forwarded-user")), ("", ""), "no rights of the gateway");
    }
    assert_eq!(setup.get(&other, &[("x-api-impersonate-user", "root")]).status, 403);
    let forged = SigningKey::new("one").sign(&claims(NOW, &json!({})));
    assert_eq!(setup.get(&forged, &[]).reason(), "jwt_invalid", "tokens of a known issuer are verified here");
    assert_eq!(setup.upstream.log().len(), 2);
}

#[test]
fn an_unrelated_reload_fetches_no_keys() {
    let setup = Setup::new("", &[]);
    assert_eq!(setup.get(&setup.token(&json!({})), &[]).status, 200);
    let fetched = setup.idp.fetched();
    for _ in 0..5 {
        assert_eq!(setup.gateway.admin_command("POST /reload", "{}").status, 200);
    }
    assert_eq!(setup.get(&setup.token(&json!({"jti": "another"})), &[]).status, 200);
    assert_eq!(setup.idp.fetched(), fetched);
}

#[test]
fn a_route_restricts_the_credentials() {
    let key = SigningKey::new("one");
    let idp = Idp::start(&[&key]);
    let upstream = Upstream::start();
    let file = "routes:\n  - {name: api, credentials: [api_key]}\n  - {name: openapi, credentials: [jwt]}\n";
    let gateway = Gateway::start_with_file(upstream.address(), file, &[("AUTH_JWT_ISSUERS", &idp.option(""))]);
    let (token, api_key) = (key.sign(&claims(4_000_000_000, &json!({}))), gateway.token());
    let send = |path: &str, name: &str, value: &str| {
        gateway.client().send(&format!("GET {path}"), &[JSON, (name, value)], b"")
    };
    assert_eq!(send("/timbr/api/x", "x-api-key", &api_key).status, 200);
    assert_eq!(send("/timbr/openapi/x", "x-jwt-token", &token).status, 200);
    assert_eq!(send("/timbr/api/x", "x-jwt-token", &token).reason(), "api_key_missing");
    assert_eq!(send("/timbr/openapi/x", "x-api-key", &api_key).reason(), "jwt_missing");
    assert_eq!(upstream.log().len(), 2);
}
