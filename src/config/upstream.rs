//! Reads the options of the upstreams: URLs, timeouts, health checks and the queue. Knows no connection.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::base::secret::Secret;
use crate::config::options::{GLOBAL, HEALTH, HealthOptions, UPSTREAM};
use crate::config::reader::{Reader, complete};
use crate::config::sources::{self, Problem, ValueOrigin};
use crate::config::{AbandonedPolicy, CertificateFiles, HostHeader, routes};

/// Each backend has a connection pool in each worker, and a health check task.
const MAX_URLS: usize = 64;

/// Name of the upstream that the section `upstream` describes, and that routes without `upstream` use.
pub const DEFAULT_UPSTREAM: &str = "default";

/// Equivalent backends and how to connect to them.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamOptions {
    /// Name in `upstreams`, or [`DEFAULT_UPSTREAM`].
    pub name: String,
    /// At least one; all have the same scheme.
    pub urls: Vec<ServerUrl>,
    /// What the backend receives as proof of the caller.
    pub credential: CredentialMode,
    /// Certificate authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client certificate of the gateway.
    pub client_certificate: Option<CertificateFiles>,
    /// Name to verify in place of the host.
    pub server_name: Option<String>,
    /// Limit for the TCP connection and the TLS handshake together.
    pub connect_timeout: Duration,
    /// Limit for the response headers.
    pub response_timeout: Duration,
    /// Limit between two reads of the response body.
    pub body_timeout: Duration,
    /// Age at which an idle connection is closed.
    pub idle_timeout: Duration,
    /// The name in `host` that the backend receives.
    pub host_header: HostHeader,
    /// Handling of requests whose clients have left.
    pub abandoned: AbandonedPolicy,
    /// Interval of DNS lookups.
    pub resolve_interval: Duration,
    /// Limit on concurrent requests; `None`: there is none.
    pub queue: Option<QueueOptions>,
    /// Health checks and ejection of addresses.
    pub health: HealthOptions,
}

impl UpstreamOptions {
    /// The URL of the first backend.
    pub fn url(&self) -> &ServerUrl {
        &self.urls[0]
    }

    /// Whether the TLS options are the same; the files may differ.
    pub fn has_same_tls(&self, other: &UpstreamOptions) -> bool {
        let options = |upstream: &UpstreamOptions| {
            (upstream.ca_file.clone(), upstream.client_certificate.clone(), upstream.server_name.clone())
        };
        options(self) == options(other)
    }

    /// Whether all backends use TLS.
    pub fn tls(&self) -> bool {
        self.url().tls
    }
}

/// Limit on concurrent requests to an upstream, and the queue for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Concurrent requests; `None`: no limit.
    pub requests: Option<usize>,
    /// Concurrent requests of each endpoint; `None`: no limit.
    pub requests_per_endpoint: Option<usize>,
    /// Queued requests.
    pub queue: usize,
    /// Maximum time in the queue.
    pub timeout: Duration,
}

/// Scheme, host and port of a server, or its Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// Whether the scheme uses TLS, such as `https`.
    pub tls: bool,
    /// Host name or IP address; an IPv6 address has no brackets. `localhost` for a Unix socket.
    pub host: String,
    /// TCP port; the default of the scheme if the URL has none.
    pub port: u16,
    /// The Unix socket, in place of host and port.
    pub socket: Option<PathBuf>,
}

impl ServerUrl {
    /// Host and, unless it is the default of the scheme, port: the value of the `host` header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }

    /// What identifies the server, for messages.
    pub fn name(&self) -> String {
        self.socket.as_ref().map_or_else(|| self.authority(), |path| format!("unix:{}", path.display()))
    }
}

/// The credential that the backend receives.
#[derive(Clone, Debug, PartialEq)]
pub enum CredentialMode {
    /// The client's own key, and the user's name in `x-forwarded-user`.
    Forward,
    /// The key that the platform returns when the gateway logs the user in.
    Platform,
    /// The token that the backend's own `get_token` returned to the user.
    Delegate,
    /// The key that the backend returns for `SHOW TOKEN` with the user's JWT, or with the key that the user's login returned.
    ShowToken,
    /// The gateway's key, and the user's name in `x-api-impersonate-user`.
    Impersonate {
        /// A Timbr token that is allowed to impersonate.
        service_key: Secret,
    },
}

impl CredentialMode {
    /// Whether the backend receives the gateway's key.
    pub fn is_impersonate(&self) -> bool {
        matches!(self, CredentialMode::Impersonate { .. })
    }

    /// Whether each user has its own key at the backend.
    pub fn is_per_user(&self) -> bool {
        matches!(self, CredentialMode::Platform | CredentialMode::Delegate | CredentialMode::ShowToken)
    }
}

impl Reader<'_> {
    pub(super) fn upstream(&mut self) -> Option<UpstreamOptions> {
        let backends = self.upstream_urls();
        if backends.as_ref().is_some_and(|urls| !urls[0].tls) {
            let keys = [UPSTREAM.ca_file.key, UPSTREAM.client_cert_file.key, UPSTREAM.server_name.key];
            self.reject_set(&keys, "has no effect with an http:// upstream; use an https:// one or remove it");
        }
        complete!(UpstreamOptions {
            name: Some(DEFAULT_UPSTREAM.to_owned()),
            urls: backends,
            credential: self.credential(),
            ca_file: Some(self.get(&UPSTREAM.ca_file)),
            client_certificate: Some(self.certificate(&UPSTREAM.client_cert_file, &UPSTREAM.client_key_file)),
            server_name: Some(self.get(&UPSTREAM.server_name)),
            connect_timeout: self.get(&UPSTREAM.connect_timeout),
            response_timeout: self.get(&UPSTREAM.response_timeout),
            body_timeout: self.get(&UPSTREAM.body_timeout),
            idle_timeout: self.get(&UPSTREAM.idle_timeout),
            host_header: self.get(&UPSTREAM.host_header),
            abandoned: self.get(&UPSTREAM.abandoned),
            resolve_interval: self.get(&UPSTREAM.resolve_interval),
            queue: self.queue(),
            health: self.health(),
        })
    }

    /// The entries of `upstreams`. Each is read like the section `upstream`, whose credential is the default of theirs.
    pub(super) fn named_upstreams(&mut self) -> Vec<UpstreamOptions> {
        let mut upstreams: Vec<UpstreamOptions> = Vec::new();
        for (index, node) in self.get(&GLOBAL.upstreams).unwrap_or_default().into_iter().enumerate() {
            let at = format!("{}[{index}]", GLOBAL.upstreams);
            match self.named_upstream(&at, node) {
                Some(upstream) if upstreams.iter().any(|other| other.name == upstream.name) => {
                    self.problem(format!("{at}.name"), format!("{} is a duplicate", upstream.name));
                }
                upstream => upstreams.extend(upstream),
            }
        }
        upstreams
    }

    fn named_upstream(&mut self, at: &str, node: Value) -> Option<UpstreamOptions> {
        let before = self.problems.len();
        let (name, mut settings) = sources::upstream_entry(at, node, self.problems)?;
        let has_own = |key| settings.values.get(key).is_some_and(|value| value.origin != ValueOrigin::Default);
        let [credential, api_key] = [UPSTREAM.credential.key, UPSTREAM.api_key.key];
        let inherited: &[&str] = match (has_own(credential), has_own(api_key)) {
            (true, _) => &[],
            (false, true) => &[credential],
            (false, false) => &[credential, api_key],
        };
        for key in inherited {
            if let Some((key, value)) = self.settings.values.get_key_value(key) {
                settings.values.insert(key, value.clone());
            }
        }
        let mut problems = Vec::new();
        let mut upstream = Reader { settings: &settings, problems: &mut problems }.upstream();
        let place = |Problem { subject, message }| Problem::new(subject.replacen("upstream", at, 1), message);
        self.problems.extend(problems.into_iter().map(place));
        match name {
            Some(name) if name != DEFAULT_UPSTREAM && routes::is_name(&name) => {
                upstream.as_mut()?.name = name;
            }
            _ => self.problem(
                format!("{at}.name"),
                format!("must be a word of a-z, 0-9, `-` and `_` other than {DEFAULT_UPSTREAM}"),
            ),
        }
        (self.problems.len() == before).then_some(upstream?)
    }

    /// The limit on requests to the backends; `Some(None)`: there is none.
    fn queue(&mut self) -> Option<Option<QueueOptions>> {
        let limit = |limit: usize| (limit > 0).then_some(limit);
        let limits = complete!(QueueOptions {
            requests: self.get(&UPSTREAM.requests).map(limit),
            requests_per_endpoint: self.get(&UPSTREAM.requests_per_endpoint).map(limit),
            queue: self.get(&UPSTREAM.queue),
            timeout: self.get(&UPSTREAM.queue_timeout),
        });
        limits.map(|limits| limits.requests.or(limits.requests_per_endpoint).map(|_| limits))
    }

    fn upstream_urls(&mut self) -> Option<Vec<ServerUrl>> {
        if self.is_set(&UPSTREAM.url) && self.is_set(&UPSTREAM.urls) {
            self.problem(UPSTREAM.urls.key, "cannot be combined with upstream.url; keep one of them");
            return None;
        }
        if self.is_set(&UPSTREAM.url) {
            return self.get(&UPSTREAM.url).map(|url| vec![url]);
        }
        if !self.is_set(&UPSTREAM.urls) {
            return self.missing(
                UPSTREAM.url.key,
                "is required: the URL of the Timbr backend, such as http://127.0.0.1:8000 \
                 (TIMBR_GATEWAY_UPSTREAM_URL); for several backends use upstream.urls",
            );
        }
        let urls = self.get(&UPSTREAM.urls)?;
        let duplicate = urls.iter().enumerate().find(|(index, url)| urls[..*index].contains(url));
        let message = if let Some((_, url)) = duplicate {
            format!("{} is a duplicate", url.name())
        } else if urls.iter().any(|url| url.tls != urls[0].tls) {
            "must be all https://, or all http:// or unix:/: they share one TLS configuration".to_owned()
        } else if urls.len() > MAX_URLS {
            format!("has {} backends; the maximum is {MAX_URLS}", urls.len())
        } else {
            return Some(urls);
        };
        self.problem(UPSTREAM.urls.key, message);
        None
    }

    fn health(&mut self) -> Option<HealthOptions> {
        let path = self.get(&HEALTH.health_path);
        if let Some(path) = &path {
            let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            if !path.starts_with('/') || !plain || path.parse::<http::Uri>().is_err() {
                let message = format!("must be a path such as /health, not {path:?}");
                self.problem(HEALTH.health_path.key, message);
            }
        }
        HealthOptions::read(self)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::testing::{SALT, load_exactly};

    fn loaded(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        load_exactly(file, &[&[("API_AUTH_SALT", SALT)], variables].concat()).map(|(config, _)| config)
    }

    fn authorities(config: Result<Config, String>) -> String {
        let urls = config.expect("valid").upstream.urls;
        urls.iter().map(crate::config::ServerUrl::authority).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_or_several_backends() {
        assert_eq!(authorities(loaded("", &[("UPSTREAM_URL", "http://a:1")])), "a:1");
        assert_eq!(authorities(loaded("", &[("UPSTREAM_URLS", "https://a, https://b:2")])), "a b:2");
        assert_eq!(authorities(loaded("upstream:\n  urls: ['http://a:1', 'http://b:1']\n", &[])), "a:1 b:1");
        assert_eq!(authorities(loaded("upstream:\n  urls:\n    - http://a:1\n", &[])), "a:1");
    }

    #[test]
    fn invalid_backends_are_reported() {
        for (env, expected) in [
            (&[("UPSTREAM_URL", "http://a"), ("UPSTREAM_URLS", "http://b")][..], "upstream.urls: cannot be combined"),
            (&[], "upstream.url: is required"),
            (&[("UPSTREAM_URLS", "http://a,https://b")], "upstream.urls: must be all https://, or all http://"),
            (&[("UPSTREAM_URLS", "http://a,http://a:80")], "upstream.urls: a is a duplicate"),
            (&[("UPSTREAM_URLS", "unix:/a,unix:///a")], "upstream.urls: unix:/a is a duplicate"),
            (&[("UPSTREAM_URLS", "unix:/a,https://b")], "upstream.urls: must be all https://, or all http://"),
            (&[("UPSTREAM_URLS", "http://a,")], "upstream.urls: must be http://host:port"),
            (&[("UPSTREAM_URLS", "http://u:sekrit@a")], "without a user name"),
            (
                &[("UPSTREAM_URL", "http://a"), ("UPSTREAM_HEALTH_PATH", "health")],
                "upstream.health_path: must be a path",
            ),
            (&[("UPSTREAM_URL", "http://a"), ("UPSTREAM_HEALTH_PATH", "/a b")], "upstream.health_path: must be a path"),
        ] {
            let error = loaded("", env).expect_err(expected);
            assert!(error.contains(expected) && !error.contains("sekrit"), "{expected} in {error}");
        }
    }

    #[test]
    fn named_upstreams_have_every_key_of_upstream() {
        let file = "upstream: {url: 'http://a:1', credential: impersonate, api_key: tk_1, requests: 3}\n\
                    auth: {trust_salt_holder: true}\n\
                    upstreams:\n\
                    - {name: timbr-server, url: 'http://b:11000', requests: 5, response_timeout: 9s}\n\
                    - {name: timbr-mdx, urls: ['https://c', 'https://d'], server_name: mdx, credential: forward, \
                    requests_per_endpoint: 7}\n";
        let config = loaded(file, &[]).expect("valid");
        let [server, mdx] = &config.upstreams[..] else { panic!("two") };
        assert_eq!((server.name.as_str(), server.url().port), ("timbr-server", 11000));
        let limits = |queue: Option<crate::config::QueueOptions>| queue.map(|q| (q.requests, q.requests_per_endpoint));
        assert_eq!((limits(server.queue), server.response_timeout.as_secs()), (Some((Some(5), None)), 9));
        assert_eq!(server.credential, config.upstream.credential, "the credential is inherited");
        assert_eq!((mdx.urls.len(), limits(mdx.queue)), (2, Some((None, Some(7)))));
        assert_eq!(mdx.response_timeout.as_secs(), 3600);
        assert_eq!(mdx.credential, crate::config::CredentialMode::Forward);
        assert_eq!(mdx.server_name.as_deref(), Some("mdx"));
    }

    #[test]
    fn problems_of_named_upstreams_have_a_place() {
        for (entry, expected) in [
            ("{name: a}", "upstreams[0].url: is required"),
            ("{url: 'http://b'}", "upstreams[0].name: must be a word"),
            ("{name: default, url: 'http://b'}", "upstreams[0].name: must be a word"),
            ("{name: a, url: 'http://b', colour: red}", "upstreams[0].colour: unknown key"),
            ("{name: a, url: 'http://b', ca_file: /ca}", "upstreams[0].ca_file: has no effect"),
            ("{name: a, url: 'http://b', connect_timeout: 5}", "upstreams[0].connect_timeout: needs a unit"),
            ("{name: a, url: 'http://b', connect_timeout: soon}", "upstreams[0].connect_timeout: must be a duration"),
            ("{name: a, url: 'http://b', api_key: tk_sekrit}", "upstreams[0].api_key: must be in a file"),
            ("{name: a, url: 'http://b', credential: impersonate}", "upstreams[0].api_key: is required"),
            ("{name: a, url: 'http://b', credential: platform}", "upstreams[0].credential: must be forward"),
            ("{name: a, url: 'http://b'}, {name: a, url: 'http://c'}", "upstreams[1].name: a is a duplicate"),
            ("text", "upstreams[0]: must be a group of keys"),
        ] {
            let file = format!("upstream: {{url: 'http://a'}}\nupstreams: [{entry}]\n");
            let error = loaded(&file, &[]).expect_err(entry);
            assert!(error.contains(expected) && !error.contains("sekrit"), "{expected} in {error}");
        }
    }
}
