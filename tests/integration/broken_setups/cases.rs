//! The set-ups: a configuration file that works, with one mistake.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};

use super::Said;
use super::servers::Servers;
use crate::support::bearer::SALT;

/// A set-up with one mistake.
pub struct Case {
    pub name: &'static str,
    pub files: Vec<(&'static str, Vec<u8>)>,
    pub folders: Vec<&'static str>,
    /// Symbolic links that lead to themselves.
    pub loops: Vec<&'static str>,
    /// Files and folders with these permissions. The commands run without root's right to ignore them.
    pub modes: Vec<(&'static str, u32)>,
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
        let file: String = sections.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        Case {
            name,
            files: vec![("gateway.yaml", file.into()), ("salt", SALT.into())],
            folders: Vec::new(),
            loops: Vec::new(),
            modes: Vec::new(),
            config_file: "gateway.yaml",
            environment: Vec::new(),
            doctor_arguments: Vec::new(),
            awaited: "",
            named,
        }
    }

    fn with_file(mut self, name: &'static str, content: impl Into<Vec<u8>>) -> Case {
        self.files.retain(|(other, _)| *other != name);
        self.files.push((name, content.into()));
        self
    }

    /// `lines` after the configuration file.
    fn with_lines(mut self, lines: &str) -> Case {
        self.files[0].1.extend_from_slice(lines.as_bytes());
        self
    }

    fn with_folder(mut self, name: &'static str) -> Case {
        self.folders.push(name);
        self
    }

    fn with_mode(mut self, name: &'static str, mode: u32) -> Case {
        self.modes.push((name, mode));
        self
    }

    fn with_config_file(mut self, name: &'static str) -> Case {
        self.config_file = name;
        self
    }

    /// With the line ends of Windows, in every file.
    pub fn with_crlf(mut self) -> Case {
        for (_, content) in &mut self.files {
            *content = String::from_utf8_lossy(content).replace('\n', "\r\n").into_bytes();
        }
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
const STORE: (&str, &str) = ("store", "{kind: file, path: tokens}");
const HTTP_SOCKET: (&str, &str) = ("listen", "{https: 'off', http_socket: run/socket, admin: 'off'}");
const HTTPS: (&str, &str) = ("listen", "{https: '127.0.0.1:0', admin: 'off'}");

/// A certificate that is valid in these years, and its key.
fn certificate(names: &[&str], years: [i32; 2]) -> (String, String) {
    certificate_for(names, years, &[])
}

fn certificate_for(names: &[&str], years: [i32; 2], usages: &[ExtendedKeyUsagePurpose]) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("valid");
    [params.not_before, params.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
    params.extended_key_usages = usages.to_vec();
    (params.self_signed(&key).expect("signed").pem(), key.serialize_pem())
}

/// A certificate with the timestamps of Certificate Transparency.
fn certificate_of_public_authority() -> (String, String) {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "Example Intermediate");
    let authority = Issuer::new(authority, KeyPair::generate().expect("a key"));
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["gateway.example.com".to_owned()]).expect("valid");
    [params.not_before, params.not_after] = [2020, 2100].map(|year| date_time_ymd(year, 1, 1));
    let timestamps = [1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&timestamps, vec![4, 2, 0, 0])];
    (params.signed_by(&key, &authority).expect("signed").pem(), key.serialize_pem())
}

fn valid_certificate() -> (String, String) {
    certificate(&["gateway.example.com"], [2020, 2100])
}

/// The first line of a PEM file's content, between its header and its end.
fn cut_off(pem: &str) -> String {
    let lines: Vec<_> = pem.lines().collect();
    [lines[0], lines[1], lines[lines.len() - 1], ""].join("\n")
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
    let key_set = format!("http://127.0.0.1:{}/keys", servers.backend_port);
    let closed = servers.closed_port();
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
        case("The file with the salt has quotes", &[], ["api_auth_salt", "Remove the quotes"])
            .with_file("salt", format!("\"{SALT}\"\n")),
        case("The salt is encoded in base64 twice", &[], ["api_auth_salt", "stringData"])
            .with_file("salt", STANDARD.encode(SALT)),
        case("A size in MB", &[("limits", "{body: 10 MB}")], ["limits.body", "10MiB"]),
        case("A duration without a unit", &[("tokens", "{ttl: 3600}")], ["tokens.ttl", "30s"]),
        case("`yes` in place of `true`", &[("auth", "{trust_salt_holder: yes}")], ["auth.trust_salt_holder", "true"]),
        case("`1` in place of `true`", &[("auth", "{trust_salt_holder: 1}")], ["auth.trust_salt_holder", "true"]),
        case("A group of keys in place of a list", &[("upstreams", "{a: {url: 'http://b'}}")], ["upstreams", "a list"]),
        case("A network with host bits", &[("trusted_proxies", "[10.0.0.1/8]")], ["trusted_proxies", "10.0.0.0/8"]),
        case("A method in lower case", &[("routes", "[{name: api, methods: [get]}]")], ["routes[0].methods", "GET"]),
        case("A misspelled variable", &[], ["TIMBR_GATEWAY_UPSTREAM_ULR", "did you mean"]),
        case("A variable in lower case", &[], ["timbr_gateway_upstream_url", "did you mean"]),
        case("The file is not YAML", &[], ["gateway.yaml", "line"])
            .with_file("gateway.yaml", "listen: {https: 'off'\n"),
        case("The configuration file does not exist", &[], ["gatway.yaml", "TIMBR_GATEWAY_CONFIG"])
            .with_config_file("gatway.yaml"),
        case("The configuration file is a folder", &[], ["config", "name a file"])
            .with_folder("etc")
            .with_config_file("etc"),
        case("The configuration file must not be read", &[], ["gateway.yaml", "give user 65532 access"])
            .with_mode("gateway.yaml", 0),
        case("The configuration file is UTF-16", &[], ["gateway.yaml", "save it as UTF-8"])
            .with_file("gateway.yaml", b"\xff\xfel\0i\0s\0t\0".as_slice()),
        case("The configuration file is a link to itself", &[], ["loop.yaml", "symbolic link"])
            .with_config_file("loop.yaml"),
        case("The configuration file is empty", &[], ["upstream.url", "is required"]).with_file("gateway.yaml", ""),
        case("A key is set twice", &[], ["gateway.yaml", "keep one of them"])
            .with_lines("tokens:\n  ttl: 1h\n  ttl: 2h\n"),
        case("A key is set in two spellings", &[], ["tokens.ttl", "keep one"])
            .with_lines("tokens: {ttl: 1h}\ntokens.ttl: 2h\n"),
        case("A section within a section", &[], ["tokens.limits", "indentation"])
            .with_lines("tokens:\n  ttl: 1h\n  limits: {body: 1MiB}\n"),
        case("A pattern without quotes", &[], ["gateway.yaml", "in quotes"]).with_lines("headers: {drop: [*-user]}\n"),
        case("A brace that is not closed", &[], ["gateway.yaml", "close the `{`"])
            .with_lines("tokens: {ttl: 1h\nlimits: {body: 1MiB}\n"),
        case("A tab in YAML", &[], ["gateway.yaml", "indent with spaces"]).with_lines("tokens:\n\tttl: 1h\n"),
        case("Two documents in one file", &[], ["gateway.yaml", "remove the line `---`"])
            .with_lines("---\ntokens: {ttl: 1h}\n"),
        case("Wrong indentation", &[], ["gateway.yaml", "check the indentation"])
            .with_lines("tokens:\n  ttl: 1h\n limits: {body: 1MiB}\n"),
        case("A value in place of a group", &[("tokens", "1h")], ["tokens", "must be a group of keys"]),
        case("A list in place of a value", &[("tokens", "{ttl: [1h]}")], ["tokens.ttl", "must be a single value"]),
        case(
            "Two listeners with one address",
            &[("listen", "{https: '127.0.0.1:8443', http: '127.0.0.1:8443'}")],
            ["listen.http", "same address"],
        ),
        case(
            "A listener on all addresses, and one on its port",
            &[("listen", "{https: '0.0.0.0:8443', http: '127.0.0.1:8443'}")],
            ["listen.http", "a different one"],
        ),
        case("No listener", &[("listen", "{https: 'off', admin: 'off'}")], ["listen.https", "off"]),
        case(
            "A listener on a foreign address",
            &[("listen", "{https: 'off', http: '192.0.2.1:8080', admin: 'off'}")],
            ["listen.http", "192.0.2.1:8080"],
        ),
        case(
            "The port of a listener is in use",
            &[("listen", &format!("{{https: 'off', http: '127.0.0.1:{}', admin: 'off'}}", servers.silent_port()))],
            ["listen.http", "ss -ltnp 'sport = :8001'"],
        ),
        case(
            "A port above 65535",
            &[("listen", "{https: 'off', http: '127.0.0.1:80800', admin: 'off'}")],
            ["listen.http", "address:port"],
        ),
        case(
            "A listener has the address of the backend",
            &[("listen", &format!("{{https: 'off', http: '0.0.0.0:{}', admin: 'off'}}", servers.backend_port))],
            ["upstream.url", "also the address of listen.http"],
        ),
        case(
            "A listener on a foreign IPv6 address",
            &[("listen", "{https: 'off', http: '[2001:db8::1]:8080', admin: 'off'}")],
            ["listen.http", "ip address"],
        ),
        case(
            "The path of a Unix socket is too long",
            &[("listen", &format!("{{https: 'off', http_socket: /run/{}, admin: 'off'}}", "x".repeat(120)))],
            ["listen.http_socket", "use a shorter one"],
        ),
        case("The file of a Unix socket is a regular file", &[HTTP_SOCKET], ["listen.http_socket", "remove it"])
            .with_folder("run")
            .with_file("run/socket", ""),
        case("The folder of a Unix socket is a file", &[HTTP_SOCKET], ["listen.http_socket", "not a folder"])
            .with_file("run", ""),
        case(
            "The folder above that of a Unix socket does not exist",
            &[("listen", "{https: 'off', http_socket: run/gateway/socket, admin: 'off'}")],
            ["listen.http_socket", "create the folder above it"],
        ),
        case("Other users can write to the folder of a Unix socket", &[HTTP_SOCKET], ["http_socket", "of its own"])
            .with_folder("run")
            .with_mode("run", 0o777),
        case(
            "Unknown clients behind the PROXY protocol",
            &[("listen", "{https: 'off', http: '127.0.0.1:0', proxy_protocol: required}")],
            ["listen.proxy_protocol", "trusted_proxies"],
        ),
        case("The file with the certificate does not exist", &[HTTPS, TLS], ["tls.cert_file", "tls.crt"]),
        case("The private key must not be read", &[HTTPS, TLS], ["tls.key_file", "give user 65532 access"])
            .with_certificate(valid_certificate())
            .with_mode("tls.key", 0),
        case("The file with the certificate is empty", &[HTTPS, TLS], ["tls.cert_file", "PEM"])
            .with_certificate((String::new(), valid_certificate().1)),
        case("Certificate and key are swapped", &[HTTPS, TLS], ["tls.cert_file", "a different option"])
            .with_certificate((valid_certificate().1, valid_certificate().0)),
        case("The certificate is DER", &[HTTPS, TLS], ["tls.cert_file", "-inform der"])
            .with_certificate(valid_certificate())
            .with_file("tls.crt", b"\x30\x82\x01\x0a".as_slice()),
        case("The certificate is encoded in base64 twice", &[HTTPS, TLS], ["tls.cert_file", "base64 -d"])
            .with_certificate((STANDARD.encode(valid_certificate().0), valid_certificate().1)),
        case("The certificate is not the first one of its chain", &[HTTPS, TLS], ["tls.key_file", "put it first"])
            .with_certificate({
                let (certificate, key) = valid_certificate();
                (valid_certificate().0 + &certificate, key)
            }),
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
        case("A certificate for clients", &[HTTPS, TLS], ["tls", "serverAuth"]).with_certificate(certificate_for(
            &["gateway.example.com"],
            [2020, 2100],
            &[ExtendedKeyUsagePurpose::ClientAuth],
        )),
        case("A certificate without that of its issuer", &[HTTPS, TLS], ["tls", "intermediate"])
            .with_certificate(certificate_of_public_authority()),
        case("The key of a different certificate", &[HTTPS, TLS], ["tls.key_file", "tls.key"])
            .with_certificate((valid_certificate().0, valid_certificate().1)),
        case("An encrypted key", &[HTTPS, TLS], ["tls.key_file", "openssl"])
            .with_certificate((valid_certificate().0, ENCRYPTED_KEY.to_owned())),
        case("A key that was cut off", &[HTTPS, TLS], ["tls.key_file", "is damaged"])
            .with_certificate((valid_certificate().0, cut_off(&valid_certificate().1))),
        case("An RSA key with 1024 bits", &[HTTPS, TLS], ["tls.", "2048"])
            .with_certificate((SHORT_RSA[0].to_owned(), SHORT_RSA[1].to_owned())),
        case(
            "The users file does not exist",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["auth.users_file", "users"],
        ),
        case(
            "The users file is a folder",
            &[("auth", "{verifier: users-file, users_file: users}")],
            ["auth.users_file", "name a file"],
        )
        .with_folder("users"),
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
            "The directory is down",
            &[
                ("auth", "{verifier: ldap}"),
                ("ldap", &format!("{{url: 'ldap://127.0.0.1:{closed}', base_dn: 'dc=x', start_tls: false}}")),
            ],
            ["ldap", "refused"],
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
        case("The path of the store is a folder", &[STORE], ["store.path", "name a different file"])
            .with_folder("tokens"),
        case("The file of the store belongs to a different program", &[STORE], ["store.path", "move this one away"])
            .with_file("tokens", "a different program's data\n".repeat(200))
            .with_mode("tokens", 0o600),
        case("Other users can read the file of the store", &[STORE], ["tokens", "chmod 600"])
            .with_file("tokens", "")
            .with_mode("tokens", 0o644),
        case(
            "The gateway cannot write to the folder of the store",
            &[("store", "{kind: file, path: state/tokens}")],
            ["store.path", "give user 65532 access"],
        )
        .with_folder("state")
        .with_mode("state", 0o555),
        case(
            "The folder of the audit log does not exist",
            &[("audit", "{file: missing/audit.json}")],
            ["audit.file", "create it"],
        ),
        case("The audit log is a folder", &[("audit", "{file: audit}")], ["audit.file", "name a different file"])
            .with_folder("audit"),
        case(
            "The syslog server of the audit log is down",
            &[("audit", &format!("{{syslog: 'tcp://127.0.0.1:{}', on_failure: refuse}}", servers.closed_port()))],
            ["audit.syslog", "refused"],
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
            "The user of Redis lacks permissions",
            &[("store", &redis("password").replace('{', "{username: reader, "))],
            ["store.username", "docs/tokens.md"],
        )
        .with_file("password", "correct")
        .with_file("store-key", store_key),
        case(
            "The keys of a token issuer cannot be fetched",
            &[(
                "auth",
                &format!("{{jwt_issuers: [{{issuer: 'https://idp', jwks_url: '{key_set}', audiences: [a]}}]}}"),
            )],
            ["auth.jwt_issuers", "401"],
        ),
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
            "The verifier and the upstream read one file, which does not exist",
            &[
                ("upstream", "{url: 'https://127.0.0.1:1', ca_file: ca.pem, credential: delegate}"),
                ("auth", "{verifier: delegate}"),
            ],
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
            "The configuration file is a link to itself" => one.loops = vec!["loop.yaml"],
            "A variable in lower case" => one.environment = vec![("timbr_gateway_upstream_url", "http://timbr:9000")],
            "Redis is down" | "The password of Redis is wrong" | "The user of Redis lacks permissions" => {
                one.awaited = "the token store is unavailable";
            }
            "The keys of a token issuer cannot be fetched" => one.awaited = "cannot load token issuer keys",
            "The syslog server of the audit log is down" => one.awaited = "the syslog server",
            "The backend's name does not resolve" => one.awaited = "DNS lookup of a backend failed",
            "An expired certificate"
            | "A certificate that is not valid yet"
            | "A certificate with a common name only"
            | "A certificate for clients"
            | "A certificate without that of its issuer" => {
                one.awaited = "\"the certificate ";
            }
            _ => {}
        }
    }
    all
}
