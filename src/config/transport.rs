//! The options of what lies below HTTP: certificates, clients' certificates, proxies in front.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::file::Node;
use crate::config::reader::Reader;
use crate::config::{CertificateFiles, ClientAuth, RouteProfile, TlsOptions};

const CERTIFICATES: &str = "tls.certificates";
const CLIENT_AUTH: &str = "tls.client_auth";
const CLIENT_CA: &str = "tls.client_ca_file";
const PROXIES: &str = "trusted_proxies";
const PROXY_PROTOCOL: &str = "listen.proxy_protocol";

impl Reader<'_> {
    pub(super) fn tls(&mut self) -> Option<TlsOptions> {
        let first = self.certificate("tls.cert_file", "tls.key_file");
        let more = self.certificates();
        let client_auth = self.client_auth();
        Some(TlsOptions { certificates: first.into_iter().chain(more).collect(), client_auth: client_auth? })
    }

    fn certificates(&mut self) -> Vec<CertificateFiles> {
        let Some(text) = self.text(CERTIFICATES) else { return Vec::new() };
        let Ok(Node::List(items)) = Node::parse(&text) else {
            self.problem(CERTIFICATES, "must be a list, such as [{cert_file: a.crt, key_file: a.key}]");
            return Vec::new();
        };
        let read = items.iter().map(pair).collect::<Vec<_>>();
        let mut pairs = Vec::with_capacity(read.len());
        for (index, pair) in read.into_iter().enumerate() {
            match pair {
                Some(pair) => pairs.push(pair),
                None => self.problem(
                    &format!("{CERTIFICATES}[{index}]"),
                    "must have the keys cert_file and key_file, with a path each, and no others",
                ),
            }
        }
        pairs
    }

    fn client_auth(&mut self) -> Option<Option<ClientAuth>> {
        let required = match (self.text(CLIENT_AUTH)?.as_str(), self.path(CLIENT_CA)) {
            ("off", None) => return Some(None),
            ("off", Some(_)) => {
                self.problem(
                    CLIENT_CA,
                    "has no use with tls.client_auth=off; did you mean optional or required?",
                );
                return None;
            }
            ("optional", Some(ca_file)) => (ca_file, false),
            ("required", Some(ca_file)) => (ca_file, true),
            (word @ ("optional" | "required"), None) => {
                let message = format!("is required with tls.client_auth={word}");
                return self.missing(CLIENT_CA, message);
            }
            (other, _) => return self.choice(CLIENT_AUTH, other),
        };
        let (ca_file, required) = required;
        Some(Some(ClientAuth { ca_file, required }))
    }

    /// SECURITY: a route that insists on certificates where none can be shown is a mistake about who is let in.
    pub(super) fn require_what_routes_rely_on(&mut self, routes: &[RouteProfile]) {
        let off = self.text(CLIENT_AUTH).as_deref() == Some("off");
        let names: Vec<_> =
            routes.iter().filter(|route| route.client_certificate).map(|route| route.name.as_str()).collect();
        if off && !names.is_empty() {
            let message = format!(
                "must be optional or required, as these routes have client_certificate: required: {}",
                names.join(", ")
            );
            self.problem(CLIENT_AUTH, message);
        }
    }

    pub(super) fn proxy_protocol(&mut self) -> Option<bool> {
        match self.text(PROXY_PROTOCOL)?.as_str() {
            "off" => Some(false),
            "required" if self.text(PROXIES).is_none() => {
                self.problem(
                    PROXY_PROTOCOL,
                    "needs trusted_proxies: headers are taken from them alone, so nobody could connect",
                );
                None
            }
            "required" => Some(true),
            other => self.choice(PROXY_PROTOCOL, other),
        }
    }

    pub(super) fn trusted_proxies(&mut self) -> Vec<IpNet> {
        let text = self.text(PROXIES).unwrap_or_default();
        let mut networks = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match network(item) {
                Some(network) => networks.push(network),
                None => self.problem(
                    PROXIES,
                    format!("must be networks or addresses, such as 10.0.0.0/8 or fd00::1, not {item:?}"),
                ),
            }
        }
        networks
    }
}

/// SECURITY: 10.1.2.3/8 could mean the network or the address; it is refused.
fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical().into());
    }
    text.parse::<IpNet>().ok().filter(|network| network.addr() == network.network())
}

fn pair(node: &Node) -> Option<CertificateFiles> {
    let Node::Map(entries) = node else { return None };
    let file = |wanted: &str| {
        let mut found = entries.iter().filter(|(key, _)| key == wanted);
        match (found.next(), found.next()) {
            (Some((_, Node::Text(path))), None) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => None,
        }
    };
    let (chain, key) = (file("cert_file")?, file("key_file")?);
    (entries.len() == 2).then_some(CertificateFiles { chain, key, options: [CERTIFICATES; 2] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Problem, Sources, load};

    fn loaded(file: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        let required = [
            ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
            ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:8000"),
        ];
        let environment = required.iter().chain(env).map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let sources = Sources { environment, file: Some(path), ..Sources::default() };
        let lines =
            |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        load(&sources).map(|(config, _)| config).map_err(lines)
    }

    #[test]
    fn certificates_are_a_list_in_the_file_and_in_a_variable() {
        let file = "tls:\n  cert_file: a.crt\n  key_file: a.key\n  certificates:\n    \
                    - {cert_file: b.crt, key_file: b.key}\n    - cert_file: c.crt\n      key_file: c.key\n";
        let names = |config: Config| {
            let chains = config.tls.certificates.into_iter();
            chains.map(|files| files.chain.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(loaded(file, &[]).expect("valid")), "a.crt b.crt c.crt");
        let variable = [("TIMBR_GATEWAY_TLS_CERTIFICATES", "[{cert_file: x.crt, key_file: x.key}]")];
        assert_eq!(names(loaded("", &variable).expect("valid")), "x.crt");
        for wrong in ["x.crt", "[x.crt]", "[{cert_file: x}]", "[{cert_file: x, key_file: y, other: z}]", "{}"]
        {
            let error = loaded("", &[("TIMBR_GATEWAY_TLS_CERTIFICATES", wrong)]).expect_err(wrong);
            assert!(error.contains("tls.certificates"), "{error}");
        }
    }

    #[test]
    fn networks_are_named_exactly() {
        let config = loaded("trusted_proxies: [10.0.0.0/8, '::1', 192.0.2.7]\n", &[]).expect("valid");
        let shown: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "::1/128", "192.0.2.7/32"]);
        let config = loaded("", &[("TIMBR_GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")]).expect("valid");
        assert_eq!(config.trusted_proxies.len(), 2);
        assert!(loaded("", &[]).expect("valid").trusted_proxies.is_empty());
        for wrong in ["10.1.2.3/8", "all", "10.0.0.0/33", "localhost"] {
            let error = loaded("", &[("TIMBR_GATEWAY_TRUSTED_PROXIES", wrong)]).expect_err(wrong);
            assert!(error.contains("trusted_proxies: must be networks"), "{error}");
        }
    }

    #[test]
    fn what_would_let_in_nobody_or_everybody_is_refused() {
        for (file, expected) in [
            ("listen: {proxy_protocol: required}", "needs trusted_proxies"),
            ("tls: {client_auth: required}", "tls.client_ca_file: is required"),
            ("tls: {client_ca_file: ca.pem}", "did you mean optional or required"),
            ("tls: {client_auth: 'true', client_ca_file: ca.pem}", "tls.client_auth: must be one of"),
            ("routes: [{name: api, client_certificate: required}]", "as these routes have"),
            (
                "listen: {https: 'off', http: '127.0.0.1:1'}\ntls: {client_ca_file: c, client_auth: required}",
                "has no use with listen.https=off",
            ),
        ] {
            let error = loaded(file, &[]).expect_err(file);
            assert!(error.contains(expected), "{file}: {error}");
        }
        let config = loaded("tls: {client_auth: optional, client_ca_file: ca.pem}", &[]).expect("valid");
        assert_eq!(config.tls.client_auth, Some(ClientAuth { ca_file: "ca.pem".into(), required: false }));
    }
}
