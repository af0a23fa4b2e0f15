//! The set-ups: a configuration file that works, with one mistake.

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::Said;
use super::servers::Servers;
use crate::support::bearer::SALT;

/// A set-up with one mistake.
pub struct Case {
    pub name: &'static str,
    pub files: Vec<(&'static str, String)>,
    pub folders: Vec<&'static str>,
    pub config_file: &'static str,
    pub environment: Vec<(&'static str, &'static str)>,
    pub doctor_arguments: Vec<&'static str>,
    /// The line of the log after which `serve` is stopped; empty: once it has started.
    pub awaited: &'static str,
    /// The key or file that must be named, and a part of the remedy.
    named: [&'static str; 2],
}

impl Case {
    /// A set-up without a mistake.
    pub fn working(servers: &Servers) -> Case {
        Case::new("working", servers, &[], ["", ""])
    }

    /// `changes` replace sections of the configuration file; an empty text removes one.
    fn new(name: &'static str, servers: &Servers, changes: &[(&str, &str)], named: [&'static str; 2]) -> Case {
        let mut sections = vec![
            ("api_auth_salt_file".to_owned(), "salt".to_owned()),
            ("listen".to_owned(), "{https: 'off', http: '127.0.0.1:0', admin: 'off'}".to_owned()),
            ("upstream".to_owned(), format!("{{url: 'http://127.0.0.1:{}'}}", servers.backend_port)),
            ("drain".to_owned(), "{delay: 0s}".to_owned()),
        ];
        for (key, value) in changes {
            sections.retain(|(other, _)| other != key);
            if !value.is_empty() {
                sections.push(((*key).to_owned(), (*value).to_owned()));
            }
        }
        let file = sections.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        Case {
            name,
            files: vec![("gateway.yaml", file), ("salt", SALT.to_owned())],
            folders: Vec::new(),
            config_file: "gateway.yaml",
            environment: Vec::new(),
            doctor_arguments: Vec::new(),
            awaited: "",
            named,
        }
    }

    fn with_file(mut self, name: &'static str, content: impl Into<String>) -> Case {
        self.files.retain(|(other, _)| *other != name);
        self.files.push((name, content.into()));
        self
    }

    fn with_certificate(self, (certificate, key): (String, String)) -> Case {
        self.with_file("tls.crt", certificate).with_file("tls.key", key)
    }

    /// A message must name the key or the file, and the remedy.
    pub fn missing_words(&self, said: &Said) -> Option<String> {
        let all: Vec<_> = [&said.check, &said.doctor, &said.serve].into_iter().flatten().collect();
        let is_missing = |word: &&str| !all.iter().any(|line| line.contains(word));
        let missing = self.named.into_iter().find(is_missing)?;
        Some(format!("{}: no {missing:?} in {all:#?}", self.name))
    }
}

/// alice, with a bcrypt hash of low cost.
const USERS: &str = "alice:$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe\n";

const SHORT_RSA: [&str; 2] = [include_str!("../../data/short-rsa.crt"), include_str!("../../data/short-rsa.key")];

/// Its content does not matter: no password could be asked for.
const ENCRYPTED_KEY: &str =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjAp\n-----END ENCRYPTED PRIVATE KEY-----\n";

const TLS: (&str, &str) = ("tls", "{cert_file: tls.crt, key_file: tls.key}");
const HTTPS: (&str, &str) = ("listen", "{https: '127.0.0.1:0', admin: 'off'}");

/// A certificate that is valid in these years, and its key.
fn certificate(names: &[&str], years: [i32; 2]) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("valid");
    [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
    (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
}

fn valid_certificate() -> (String, String) {
    certificate(&["gateway.example.com"], [2020, 2100])
}

pub fn cases(servers: &Servers) -> Vec<Case> {
    let case = |name, changes: &[(&str, &str)], named| Case::new(name, servers, changes, named);
    let url = |scheme: &str, port: u16| format!("{{url: '{scheme}://127.0.0.1:{port}'}}");
    let redis = |password: &str| {
        format!(
            "{{kind: redis, urls: 'redis://127.0.0.1:{}', password_file: {password}, key_file: store-key}}",
            servers.redis.port
        )
    };
    let store_key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let mut all = vec![
        case("No salt", &[("api_auth_salt_file", "")], ["api_auth_salt", "timbr-gateway salt"]),
        case("The file with the salt does not exist", &[("api_auth_salt_file", "./slat")], ["api_auth_salt", "slat"]),
        case("The file with the salt is a folder", &[("api_auth_salt_file", "./salts")], ["api_auth_salt", "salts"]),
        case("The file with the salt is empty", &[], ["api_auth_salt", ""]).with_file("salt", ""),
        case("The salt is a password", &[], ["api_auth_salt", "timbr-gateway salt"]).with_file("salt", "wonderland"),
        case("No backend", &[("upstream", "")], ["upstream.url", "http://127.0.0.1:8000"]),
        case(
            "The URL of the backend has no scheme",
            &[("upstream", "{url: 'timbr:9000'}")],
            ["upstream.url", "http://host:port"],
        ),
        case(
            "The URL of the backend has a path",
            &[("upstream", "{url: 'http://timbr:9000/timbr'}")],
            ["upstream.url", "without a path"],
        ),
        case(
            "A Unix socket in the spelling of other programs",
            &[("upstream", "{url: 'http+unix:///run/timbr.sock'}")],
            ["upstream.url", "unix:/path"],
        ),
        case("An unknown section", &[("tokns", "{ttl: 1h}")], ["tokns", "did you mean tokens"]),
        case("An unknown key", &[("tokens", "{tll: 1h}")], ["tokens.tll", "did you mean"]),
        case("A size in MB", &[("limits", "{body: 10 MB}")], ["limits.body", "10MiB"]),
        case("A duration without a unit", &[("tokens", "{ttl: 3600}")], ["tokens.ttl", "30s"]),
        case("`yes` in place of `true`", &[("auth", "{trust_salt_holder: yes}")], ["auth.trust_salt_holder", "true"]),
        case("A misspelled variable", &[], ["TIMBR_GATEWAY_UPSTREAM_ULR", "did you mean"]),
        case("The file is not YAML", &[], ["gateway.yaml", "line"])
            .with_file("gateway.yaml", "listen: {https: 'off'\n"),
        case("The configuration file does not exist", &[], ["gatway.yaml", ""]),
        case(
            "Two listeners with one address",
            &[("listen", "{https: '127.0.0.1:8443', http: '127.0.0.1:8443'}")],
            ["listen.http", "same address"],
        ),
        case("No listener", &[("listen", "{https: 'off', admin: 'off'}")], ["listen.https", "off"]),
        case(
            "A listener on a foreign address",
            &[("listen", "{https: 'off', http: '192.0.2.1:8080', admin: 'off'}")],
            ["listen.http", "192.0.2.1:8080"],
        ),
        case(
            "The port of a listener is in use",
            &[("listen", &format!("{{https: 'off', http: '127.0.0.1:{}', admin: 'off'}}", servers.backend_port))],
            ["listen.http", "127.0.0.1:8000"],
        ),
        case(
            "Unknown clients behind the PROXY protocol",
            &[("listen", "{https: 'off', http: '127.0.0.1:0', proxy_protocol: required}")],
            ["listen.proxy_protocol", "trusted_proxies"],
        ),
        case("The file with the certificate does not exist", &[HTTPS, TLS], ["tls.cert_file", "tls.crt"]),
        case(
            "A certificate without a key",
            &[HTTPS, ("tls", "{cert_file: tls.crt}")],
            ["tls.key_file", "tls.cert_file"],
        ),
        case("An expired certificate", &[HTTPS, TLS], ["gateway.example.com", "has expired"])
            .with_certificate(certificate(&["gateway.example.com"], [2020, 2021])),
        case("A certificate that is not valid yet", &[HTTPS, TLS], ["gateway.example.com", "clock"])
            .with_certificate(certificate(&["gateway.example.com"], [2090, 2100])),
        case("A certificate with a common name only", &[HTTPS, TLS], ["tls", "subjectAltName"])
            .with_certificate(certificate(&[], [2020, 2100])),
        case("The key of a different certificate", &[HTTPS, TLS], ["tls.key_file", "tls.key"])
            .with_certificate((valid_certificate().0, valid_certificate().1)),
        case("An encrypted key", &[HTTPS, TLS], ["tls.key_file", "openssl"])
            .with_certificate((valid_certificate().0, ENCRYPTED_KEY.to_owned())),
        case("An RSA key with 1024 bits", &[HTTPS, TLS], ["tls.", "2048"])
            .with_certificate((SHORT_RSA[0].to_owned(), SHORT_RSA[1].to_owned())),
        case(
            "The users file does not exist",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["auth.users_file", "users"],
        ),
        case(
            "The users file has passwords in place of hashes",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["auth.users_file", "users add"],
        )
        .with_file("users", "alice:wonderland\n"),
        case(
            "The users file has no users",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["auth.users_file", "no users"],
        )
        .with_file("users", "\n"),
        case(
            "`impersonate` without a service key",
            &[
                ("upstream", "{url: 'http://timbr:9000', credential: impersonate}"),
                ("auth", "{verifier: users-file, users_file: users}"),
            ],
            ["upstream.api_key", "is required"],
        ),
        case(
            "`delegate` without its verifier",
            &[("upstream", "{url: 'http://timbr:9000', credential: delegate}")],
            ["upstream.credential", "auth.verifier"],
        ),
        case(
            "LDAP without TLS",
            &[("auth", "{verifier: ldap}"), ("ldap", "{url: 'ldap://directory', base_dn: 'dc=x', start_tls: false}")],
            ["ldap.start_tls", "ldaps://"],
        ),
        case(
            "A store that needs a key",
            &[("auth", "{verifier: delegate}"), ("store", "{kind: file, path: tokens}")],
            ["store.key", "timbr-gateway store key"],
        ),
        case(
            "The folder of the store does not exist",
            &[("store", "{kind: file, path: missing/tokens}")],
            ["store.path", "missing"],
        ),
        case(
            "Redis is down",
            &[("store", &format!("{{kind: redis, urls: 'redis://127.0.0.1:{}'}}", servers.closed_port()))],
            ["store.urls", "refused"],
        ),
        case(
            "The password of Redis is wrong",
            &[("store", &redis("password"))],
            ["store.password", "authentication failed"],
        )
        .with_file("password", "wrong")
        .with_file("store-key", store_key),
        case(
            "The backend is down",
            &[("upstream", &url("http", servers.closed_port()))],
            ["upstream.url", "start the backend"],
        ),
        case(
            "http:// for a backend with TLS",
            &[("upstream", &url("http", servers.tls.https().port()))],
            ["upstream.url", "https"],
        ),
        case(
            "https:// for a backend without TLS",
            &[("upstream", &url("https", servers.backend_port))],
            ["upstream.url", "http://"],
        ),
        case(
            "The backend's certificate is not trusted",
            &[("upstream", &url("https", servers.tls.https().port()))],
            ["upstream.ca_file", "UnknownIssuer"],
        ),
        case(
            "The backend accepts and never responds",
            &[("upstream", &url("http", servers.silent_port()))],
            ["127.0.0.1:8001", "does not respond"],
        ),
        case(
            "The backend's socket does not exist",
            &[("upstream", "{url: 'unix:/nonexistent/api.sock'}")],
            ["unix:/nonexistent/api.sock", "start the backend"],
        ),
        case(
            "The backend's name does not resolve",
            &[("upstream", "{url: 'http://timbr.invalid:9000'}")],
            ["upstream.url", "DNS"],
        ),
        case(
            "The file with the backend's CA does not exist",
            &[("upstream", "{url: 'https://127.0.0.1:1', ca_file: ca.pem}")],
            ["upstream.ca_file", "ca.pem"],
        ),
        case(
            "The default mode in front of an API service as Timbr delivers it",
            &[("upstream", &url("http", servers.tls.http().port()))],
            ["upstream.credential", "delegate"],
        ),
        case(
            "A verifier that needs a user for `doctor`",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["get_token", "--user"],
        )
        .with_file("users", USERS),
    ];
    for one in &mut all {
        match one.name {
            "The file with the salt is a folder" => one.folders = vec!["salts"],
            "A misspelled variable" => one.environment = vec![("TIMBR_GATEWAY_UPSTREAM_ULR", "http://timbr:9000")],
            "The configuration file does not exist" => one.config_file = "gatway.yaml",
            "Redis is down" | "The password of Redis is wrong" => one.awaited = "the token store is unavailable",
            "The backend's name does not resolve" => one.awaited = "DNS lookup of a backend failed",
            "An expired certificate"
            | "A certificate that is not valid yet"
            | "A certificate with a common name only" => {
                one.awaited = "\"the certificate ";
            }
            _ => {}
        }
    }
    all
}
