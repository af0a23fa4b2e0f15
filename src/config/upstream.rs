//! The options of `upstream`: where the backends are, and when one of them is in use.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::secret::Secret;
use crate::config::options::UPSTREAM;
use crate::config::reader::Reader;
use crate::config::{CertificateFiles, QueueOptions};

/// Each backend has a connection pool in each worker, and a health check task.
const MAX_URLS: usize = 64;

/// The backend and how to reach it.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// Scheme, host and port of each backend: one at least, all of one scheme.
    pub urls: Vec<ServerUrl>,
    /// What proves a caller there.
    pub credential: CredentialMode,
    /// Trust anchors instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The gateway's own certificate.
    pub client_certificate: Option<CertificateFiles>,
    /// Name to verify instead of the host.
    pub server_name: Option<String>,
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// For the head of the answer.
    pub response_timeout: Duration,
    /// The longest pause within the answer's body.
    pub body_timeout: Duration,
    /// How long an idle connection may be reused.
    pub idle_timeout: Duration,
    /// How often names are looked up.
    pub resolve_interval: Duration,
    /// When an address is in use, and when not.
    pub health: HealthOptions,
}

impl UpstreamOptions {
    /// The first backend.
    pub fn url(&self) -> &ServerUrl {
        &self.urls[0]
    }

    /// Whether the backends speak TLS.
    pub fn tls(&self) -> bool {
        self.url().tls
    }
}

/// When an address of a backend is in use, and when not.
#[derive(Clone, Debug)]
pub struct HealthOptions {
    /// What each address is asked for now and then.
    pub path: Option<String>,
    /// How often, and how long that may take.
    pub interval: Duration,
    /// Failed checks in a row that take it out of use.
    pub unhealthy_after: u32,
    /// Successful ones that put it back.
    pub healthy_after: u32,
    /// Requests in a row without an answer that take it out of use; 0: never.
    pub eject_after: u32,
    /// For how long, the first time.
    pub eject_time: Duration,
}

/// Scheme, host and port of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// `https`.
    pub tls: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl ServerUrl {
    /// Host, and the port where it is not the scheme's own: the value of `host`.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

/// What proves a caller to the backend.
#[derive(Clone, Debug)]
pub enum CredentialMode {
    /// The client's own key, and the user's name in `x-forwarded-user`.
    Forward,
    /// The key that the platform gives the user when the gateway logs him in.
    Platform,
    /// The token that the backend's own `get_token` gives the user.
    Delegate,
    /// The gateway's key, and the user's name in `x-api-impersonate-user`.
    Impersonate {
        /// A Timbr token that was granted impersonation.
        service_key: Secret,
    },
}

impl CredentialMode {
    /// Whether each token stands for a key of its user's own.
    pub fn is_per_user(&self) -> bool {
        matches!(self, CredentialMode::Platform | CredentialMode::Delegate)
    }
}

impl Reader<'_> {
    pub(super) fn upstream(&mut self) -> Option<UpstreamOptions> {
        let urls = self.upstream_urls();
        let credential = self.credential();
        let client_certificate = self.certificate(&UPSTREAM.client_cert_file, &UPSTREAM.client_key_file);
        let ca_file = self.get(&UPSTREAM.ca_file);
        let server_name = self.get(&UPSTREAM.server_name);
        let connect_timeout = self.get(&UPSTREAM.connect_timeout);
        let response_timeout = self.get(&UPSTREAM.response_timeout);
        let body_timeout = self.get(&UPSTREAM.body_timeout);
        let idle_timeout = self.get(&UPSTREAM.idle_timeout);
        let resolve_interval = self.get(&UPSTREAM.resolve_interval);
        let health = self.health();
        let urls = urls?;
        if !urls[0].tls {
            let keys = [UPSTREAM.ca_file.key, UPSTREAM.client_cert_file.key, UPSTREAM.server_name.key];
            self.reject_set(
                &keys,
                "has no effect with an http:// upstream; use an https:// one or remove it",
            );
        }
        Some(UpstreamOptions {
            urls,
            credential: credential?,
            ca_file,
            client_certificate,
            server_name,
            connect_timeout: connect_timeout?,
            response_timeout: response_timeout?,
            body_timeout: body_timeout?,
            idle_timeout: idle_timeout?,
            resolve_interval: resolve_interval?,
            health: health?,
        })
    }

    /// The limit on requests to the backends; `Some(None)`: there is none.
    pub(super) fn queue(&mut self) -> Option<Option<QueueOptions>> {
        let (requests, queue) = (self.get(&UPSTREAM.requests), self.get(&UPSTREAM.queue));
        let patience = self.get(&UPSTREAM.queue_timeout);
        let limits = QueueOptions { requests: requests?, queue: queue?, timeout: patience? };
        Some((limits.requests > 0).then_some(limits))
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
            format!("{} is a duplicate", url.authority())
        } else if urls.iter().any(|url| url.tls != urls[0].tls) {
            "must be all http:// or all https://: they share one TLS configuration".to_owned()
        } else if urls.len() > MAX_URLS {
            format!("has {} backends; the maximum is {MAX_URLS}", urls.len())
        } else {
            return Some(urls);
        };
        self.problem(UPSTREAM.urls.key, message);
        None
    }

    fn health(&mut self) -> Option<HealthOptions> {
        let path = self.get(&UPSTREAM.health_path);
        if let Some(path) = &path {
            let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            if !path.starts_with('/') || !plain || path.parse::<http::Uri>().is_err() {
                let message = format!("must be a path such as /health, not {path:?}");
                self.problem(UPSTREAM.health_path.key, message);
            }
        }
        let (interval, eject_time) = (self.get(&UPSTREAM.health_interval), self.get(&UPSTREAM.eject_time));
        let unhealthy_after = self.get(&UPSTREAM.unhealthy_after);
        let healthy_after = self.get(&UPSTREAM.healthy_after);
        let eject_after = self.get(&UPSTREAM.eject_after);
        Some(HealthOptions {
            path,
            interval: interval?,
            unhealthy_after: unhealthy_after?,
            healthy_after: healthy_after?,
            eject_after: eject_after?,
            eject_time: eject_time?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Problem, Sources, load};

    fn loaded(file: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        let mut environment =
            vec![("API_AUTH_SALT".into(), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=".into())];
        for (name, value) in env {
            environment.push((format!("TIMBR_GATEWAY_UPSTREAM_{name}").into(), (*value).into()));
        }
        let sources = Sources { environment, file: Some(path), ..Sources::default() };
        let lines =
            |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        load(&sources).map(|(config, _)| config).map_err(lines)
    }

    fn authorities(config: Result<Config, String>) -> String {
        let urls = config.expect("valid").upstream.urls;
        urls.iter().map(crate::config::ServerUrl::authority).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn there_is_one_backend_or_there_are_several() {
        assert_eq!(authorities(loaded("", &[("URL", "http://a:1")])), "a:1");
        assert_eq!(authorities(loaded("", &[("URLS", "https://a, https://b:2")])), "a b:2");
        assert_eq!(authorities(loaded("upstream:\n  urls: ['http://a:1', 'http://b:1']\n", &[])), "a:1 b:1");
        assert_eq!(authorities(loaded("upstream:\n  urls:\n    - http://a:1\n", &[])), "a:1");
    }

    #[test]
    fn what_has_no_meaning_is_told() {
        for (env, expected) in [
            (&[("URL", "http://a"), ("URLS", "http://b")][..], "upstream.urls: cannot stand beside"),
            (&[], "upstream.url: is required"),
            (&[("URLS", "http://a,https://b")], "upstream.urls: must be all http:// or all https://"),
            (&[("URLS", "http://a,http://a:80")], "upstream.urls: a stands there twice"),
            (&[("URLS", "http://a,")], "upstream.urls: must be http://host:port"),
            (&[("URLS", "http://u:sekrit@a")], "without a user name"),
            (&[("URL", "http://a"), ("HEALTH_PATH", "health")], "upstream.health_path: must be a path"),
            (&[("URL", "http://a"), ("HEALTH_PATH", "/a b")], "upstream.health_path: must be a path"),
        ] {
            let error = loaded("", env).expect_err(expected);
            assert!(error.contains(expected) && !error.contains("sekrit"), "{expected} in {error}");
        }
    }
}
