//! The guarantees of SECURITY.md as property tests.
//!
//! One of them is not here: that every no takes as long (`auth::verifier::users_file` measures that).

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use fernet::Fernet;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use timbr_gateway::auth::bearer::{BearerError, BearerOpener};
use timbr_gateway::base::clock::Clock;
use timbr_gateway::base::secret::Secret;
use timbr_gateway::base::user_name::UserName;

use crate::support::bearer::{SALT, bearer};
use crate::support::client::{Client, JSON, Response};
use crate::support::gateway::Gateway;
use crate::support::upstream::{Recorded, Upstream};

/// One gateway for all properties. Each property locks it, so that only its own requests arrive.
struct World {
    upstream: Upstream,
    gateway: Gateway,
    token: String,
    /// The time since the start at which its clock was last set.
    begun: Instant,
    set: Duration,
}

impl World {
    fn take() -> MutexGuard<'static, World> {
        static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| {
            let upstream = Upstream::start();
            let options = [
                ("TOKENS_FOREIGN", "reject"),
                ("LIMITS_FAILURES_PER_ADDRESS", "0"),
                ("LIMITS_BODY", "64KiB"),
                ("LOG_ACCESS", "false"),
            ];
            let (gateway, token) = Gateway::with_token(upstream.address(), &options);
            Mutex::new(World { upstream, gateway, token, begun: Instant::now(), set: Duration::ZERO })
        });
        let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
        // Bearers use the system clock; the gateway's clock must not fall behind.
        let passed = world.begun.elapsed();
        world.gateway.clock.advance(passed - world.set);
        world.set = passed;
        world
    }

    /// Sends a request with the valid token on a new connection; returns the response, and what was forwarded.
    fn send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> (Response, Vec<Recorded>) {
        let before = self.upstream.log().len();
        let headers = [&[("x-api-key", self.token.as_str())], headers].concat();
        let response = self.gateway.client().send(line, &headers, body);
        (response, self.upstream.log().split_off(before))
    }
}

/// Few cases: each is a request to a running gateway.
fn few() -> ProptestConfig {
    ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() }
}

fn many() -> ProptestConfig {
    ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() }
}

/// The headers with which the gateway asserts or proves the identity.
const PROTECTED: [&str; 14] = [
    "x-api-key",
    "x-api-impersonate-user",
    "x-forwarded-user",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-real-ip",
    "x-jwt-token",
    "authorization",
    "forwarded",
    "remote-user",
    "script-name",
    "path-info",
];

/// A name in random letter case, and with different characters for its dashes.
fn spelling(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let separators = prop::collection::vec(select(b"--__.!~'".to_vec()), 4);
    (select(names), separators, any::<u64>()).prop_map(|(name, separators, cases)| {
        let mut separators = separators.into_iter().cycle();
        let spelled = name.bytes().enumerate().map(|(at, byte)| match byte {
            b'-' => separators.next().expect("endless"),
            letter if cases >> (at % 64) & 1 == 1 => letter.to_ascii_uppercase(),
            letter => letter,
        });
        String::from_utf8(spelled.collect()).expect("ASCII")
    })
}

fn folded_headers(name: &str) -> String {
    name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// An unambiguous path.
fn path() -> impl Strategy<Value = String> {
    let segment = "[A-Za-z0-9_~][A-Za-z0-9._~!$&'()*+,=:@-]{0,11}(%20|%25|%C3%A9)?";
    prop::collection::vec(segment, 1..5).prop_map(|segments| format!("/timbr/api/p-{}", segments.join("/")))
}

proptest! {
    #![proptest_config(few())]

    /// 1. The checked request is the forwarded request: line, headers and body.
    #[test]
    fn the_checked_request_is_the_forwarded_request(
        method in select(vec!["POST", "PUT", "PATCH", "DELETE"]),
        path in path(),
        query in prop::option::of("[A-Za-z0-9._~/?%2f&=-]{0,20}"),
        custom in prop::collection::vec(("x-custom-[a-z]{1,8}", "[!-~]([ -~]{0,20}[!-~])?"), 0..5),
        body in prop::collection::vec(any::<u8>(), 0..2000),
        chunked in any::<bool>(),
    ) {
        let world = World::take();
        let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
        let mut headers = vec![JSON];
        headers.extend(custom.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let (response, arrived) = if chunked {
            headers.push(("Transfer-Encoding", "chunked"));
            let before = world.upstream.log().len();
            let mut client = world.gateway.client();
            headers.push(("x-api-key", &world.token));
            client.write_request(&format!("{method} {target}"), &headers, b"");
            for part in body.chunks(700) {
                client.write(&[format!("{:x};ext=1\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
            }
            client.write(b"0\r\n\r\n");
            (client.read_response(), world.upstream.log().split_off(before))
        } else {
            world.send(&format!("{method} {target}"), &headers, &body)
        };
        prop_assert_eq!(response.status, 200);
        prop_assert_eq!(arrived.len(), 1);
        let seen = &arrived[0];
        prop_assert_eq!(&seen.line, &format!("{method} {target} HTTP/1.1"));
        prop_assert_eq!(&seen.body, &body);
        prop_assert_eq!(seen.header("host"), world.upstream.address().to_string());
        let framed = seen.folded_headers("content-length").len() + seen.folded_headers("transfer-encoding").len();
        prop_assert!(framed == 1 || framed == 0 && body.is_empty(), "{:?}", seen);
        for (name, _) in &custom {
            let sent: Vec<_> = custom.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect();
            prop_assert_eq!(seen.folded_headers(name), sent);
        }
    }

    /// 2. Credentials and other policy headers must not be repeated.
    #[test]
    fn duplicate_credentials_are_rejected(
        name in spelling(&["x-api-key", "authorization", "content-type", "content-length", "x-api-impersonate-user"]),
        again in spelling(&["x-api-key", "authorization", "content-type", "x-api-impersonate-user"]),
        same in any::<bool>(),
    ) {
        let world = World::take();
        let value = |name: &str| match &*folded_headers(name) {
            "content-type" => "application/json",
            "content-length" => "0",
            _ => "tk_other",
        };
        let again = if same { name.clone() } else { again };
        let headers = [JSON, ("Authorization", "x"), (&name, value(&name)), (&again, value(&again))];
        let (response, arrived) = world.send("GET /timbr/api/x", &headers, b"");
        // Not every pair collides; but a forwarded request has each header once, with the valid key.
        prop_assert!(matches!(response.status, 200 | 400 | 403), "{:?}", response);
        let collides = ["x-api-key", "content-type", "authorization"].contains(&&*folded_headers(&name)) || folded_headers(&name) == folded_headers(&again);
        prop_assert!(!collides || response.status == 400, "{:?} {:?}", headers, response);
        prop_assert_eq!(arrived.len(), usize::from(response.status == 200));
    }

    /// 3. Identity headers never come from the client, in any spelling.
    #[test]
    fn identity_headers_come_only_from_the_gateway(name in spelling(&PROTECTED)) {
        let world = World::take();
        let (response, arrived) = world.send("GET /timbr/api/x", &[JSON, (&name, "evil")], b"");
        prop_assert_eq!(arrived.len(), usize::from(response.status == 200));
        for seen in arrived {
            prop_assert!(!format!("{seen:?}").contains("evil"), "{:?}", seen);
            prop_assert_eq!(seen.folded_headers("x-forwarded-user"), vec!["alice"]);
            prop_assert_eq!(seen.folded_headers("x-api-key"), vec![world.token.as_str()]);
        }
    }

    /// 4. `Connection` cannot remove headers that were checked or that the gateway sets.
    #[test]
    fn connection_cannot_remove_checked_headers(
        options in prop::collection::vec(prop_oneof![spelling(&PROTECTED), "[a-z-]{1,10}".prop_map(String::from), Just("close".to_owned())], 1..5),
    ) {
        let world = World::take();
        let (response, arrived) = world.send("GET /timbr/api/x", &[JSON, ("Connection", &options.join(", "))], b"");
        prop_assert!(matches!(response.status, 200 | 400), "{:?}", response);
        if options.iter().any(|option| PROTECTED.contains(&&*option.to_ascii_lowercase())) {
            prop_assert_eq!(response.status, 400);
        }
        for seen in arrived {
            prop_assert_eq!(seen.header("x-api-key"), world.token.as_str());
            prop_assert_eq!(seen.header("x-forwarded-user"), "alice");
            prop_assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
            prop_assert_eq!(seen.header("content-type"), "application/json");
        }
    }

    /// 5. An ambiguous path is rejected, regardless of the position of the ambiguity.
    #[test]
    fn ambiguous_paths_are_rejected(
        path in path(),
        insert in select(vec![
            "//", "/./", "/../", "/%2e/", "/%2E%2e/", "%2f", "%2F", "%5c", "\\", ";a=b", "%00", "%0a", "%7f", "%6b", "%2d",
            "%", "%g0", "/..", "/.",
        ]),
        at in any::<Index>(),
    ) {
        let world = World::take();
        // Between segments, so that `.` and `..` are segments; some only matter at the end.
        let slashes: Vec<_> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
        let at = if insert.ends_with('.') { path.len() } else { *at.get(&slashes) };
        let ambiguous = format!("{}{insert}{}", &path[..at], &path[at..]);
        let (response, arrived) = world.send(&format!("GET {ambiguous}"), &[JSON], b"");
        prop_assert_eq!(response.status, 400, "{}", ambiguous);
        prop_assert!(arrived.is_empty());
    }

    /// 6. An unread body is never parsed as a request.
    #[test]
    fn a_rejected_body_is_not_parsed_as_a_request(length in 0_usize..3000, chunked in any::<bool>(), more in any::<bool>()) {
        let world = World::take();
        let before = world.upstream.log().len();
        let hidden = format!(
            "GET /timbr/api/hidden HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: {}\r\n\r\n",
            world.token
        );
        let body = hidden.repeat(length / hidden.len() + 1);
        let mut client = world.gateway.client();
        let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", body.len()) };
        client.write(format!("POST /timbr/api/x HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n").as_bytes());
        if chunked {
            client.write(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes());
        } else {
            client.write(body.as_bytes());
        }
        if more {
            client.write(b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
        }
        let refused = client.read_response();
        prop_assert_eq!(refused.status, 400);
        if more && refused.header("connection") != "close" {
            prop_assert_eq!(client.read_response().status, 404);
        }
        prop_assert_eq!(world.upstream.log().len(), before);
    }

    /// 7. A user name is forwarded unchanged, or not at all.
    #[test]
    fn a_user_name_is_data(name in prop_oneof!["[ -~]{1,30}", "[\\PC\r\n\t\0]{1,20}", "[a-z]{1,5}[\r\n][ -~]{1,20}"]) {
        let world = World::take();
        let authorization = format!("Bearer {}", bearer(&name, "secret"));
        let asked = world.gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", &authorization)], b"");
        // The user name is the part before the first colon.
        let named = name.split(':').next().expect("one at least");
        if asked.status != 200 {
            prop_assert_eq!(asked.status, 401);
            prop_assert!(UserName::parse(named.as_bytes()).is_err());
            return Ok(());
        }
        let token = asked.token();
        let before = world.upstream.log().len();
        let response = world.gateway.query(&token);
        prop_assert_eq!(response.status, 200);
        let arrived = world.upstream.log().split_off(before);
        prop_assert_eq!(arrived[0].folded_headers("x-forwarded-user"), vec![named]);
    }

    /// 8. No response contains a credential.
    #[test]
    fn responses_contain_no_credentials(secret in "[!-+.-~]{8,40}", target in "/[a-z]{0,5}", ending in select(vec!["", ",", " "])) {
        let world = World::take();
        let key = format!("{secret}{ending}x");
        let mut responses = Vec::new();
        for line in [format!("GET {target}"), "GET /timbr/api/x".to_owned(), "POST /timbr/api/get_token".to_owned()] {
            for name in ["x-api-key", "Authorization", "x_api_key"] {
                let mut client: Client = world.gateway.client();
                responses.push(client.send(&line, &[JSON, (name, &key)], b""));
            }
        }
        let bearer = format!("Bearer {}", bearer("alice\n", &secret));
        responses.push(world.gateway.client().send("POST /timbr/api/get_token", &[JSON, ("Authorization", &bearer)], b""));
        for response in responses {
            prop_assert!(response.status >= 400, "{:?}", response);
            let text = format!("{:?} {}", response.headers, response.text());
            prop_assert!(!text.contains(&secret) && !text.contains(&bearer), "{}", text);
        }
    }
}

const NOW: u64 = 1_700_000_000;

fn opener(max_age: Option<Duration>) -> BearerOpener {
    BearerOpener::new(&[Secret::new(SALT.into())], max_age, Clock::manual(NOW))
}

fn made_at(made: u64, text: &[u8]) -> String {
    Fernet::new(SALT).expect("a key").encrypt_at_time(STANDARD.encode(text).as_bytes(), made)
}

proptest! {
    #![proptest_config(many())]

    /// 8. `Debug` output contains no secrets.
    #[test]
    fn debug_shows_no_secret(password in "[!-~]{8,40}") {
        let login = opener(None).open(&made_at(NOW, format!("u:{password}").as_bytes())).expect("good");
        prop_assert_eq!(login.password.expose(), &password);
        let shown = format!("{login:?} {login:#?} {:?}", Secret::new(password.clone()));
        prop_assert!(!shown.contains(&password), "{}", shown);
    }

    /// 9. After any change, the signature is invalid: nothing else is checked before it.
    #[test]
    fn a_changed_bearer_is_not_authentic(
        text in prop_oneof![Just("alice:secret".to_owned()), "\\PC{0,40}"],
        made in prop_oneof![Just(NOW), Just(0), Just(NOW + 1000)],
        at in any::<Index>(),
        change in 1_u8..,
    ) {
        let mut bytes = URL_SAFE.decode(made_at(made, text.as_bytes())).expect("base64");
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert_eq!(opener(Some(Duration::from_secs(60))).open(&URL_SAFE.encode(&bytes)).map(drop), Err(BearerError::NotAuthentic));
    }

    /// 10. A bearer has exactly one form: version, alphabet, padding, and a time within limits.
    #[test]
    fn a_bearer_has_one_form(made in NOW - 200..NOW + 200, password in "[a-z]{1,20}", age in 1_u64..300) {
        let good = made_at(made, format!("alice:{password}").as_bytes());
        let expected = match made {
            _ if made > NOW + 60 => Err(BearerError::MadeInFuture),
            _ if made + age < NOW => Err(BearerError::TooOld),
            _ => Ok(()),
        };
        let opener = opener(Some(Duration::from_secs(age)));
        prop_assert_eq!(opener.open(&good).map(drop), expected);
        let unpadded = good.trim_end_matches('=');
        let others = [
            good.replace('-', "+").replace('_', "/"),
            unpadded.to_owned(),
            format!("{good}="),
            format!("{good}\n"),
            format!(" {good}"),
            format!("g{}", &good[2..]),
        ];
        for other in others.iter().filter(|other| **other != good) {
            prop_assert_eq!(opener.open(other).map(drop), Err(BearerError::NotAuthentic), "{}", other);
        }
    }
}
