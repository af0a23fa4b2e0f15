//! One gateway in front of stand-ins for the four services of Timbr, with the configuration that the repository ships.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use timbr_gateway::config::file;

use crate::support::gateway::Gateway;
use crate::support::upstream::Upstream;

/// The services as the configuration names them.
const SERVICES: [&str; 4] = ["timbr-api:9000", "timbr-server:11000", "timbr-mdx:13000", "timbr-platform:8088"];

fn shipped(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("it is in the repository")
}

#[test]
fn each_path_reaches_its_service() {
    let services = SERVICES.map(|_| Upstream::start());
    let mut file = shipped("deploy/timbr/gateway.yaml");
    for (name, service) in SERVICES.iter().zip(&services) {
        assert!(file.contains(name), "{name}");
        file = file.replace(name, &service.address().to_string());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, file).expect("written");
    let gateway = Gateway::start_with_path(path, &[("UPSTREAM_URL", "")]);
    let token = gateway.token();
    let key = ("x-api-key", token.as_str());
    let bearer = format!("Bearer {token}");
    let basic = format!("Basic {}", STANDARD.encode(format!("token@sales:{token}")));
    let [json, text, thrift, xml] = ["application/json", "application/text", "application/x-thrift", "text/xml"]
        .map(|media_type| ("Content-Type", media_type));
    let (bearer, basic) = (("Authorization", bearer.as_str()), ("Authorization", basic.as_str()));
    for (line, headers, service) in [
        ("GET /timbr/api/get_ontologies/", &[json, key][..], 0),
        ("POST /timbr/openapi/ontology/sales/query", &[text, key], 0),
        ("POST /timbr/api/mcp", &[json, bearer], 0),
        ("GET /.well-known/oauth-protected-resource/timbr/api/mcp", &[], 0),
        ("POST /timbr/api/oauth/token", &[("Content-Type", "application/x-www-form-urlencoded")], 0),
        ("POST /timbr-server/log_agent/running", &[json, basic], 1),
        ("POST /timbr-server", &[thrift, basic], 1),
        ("POST /hive2", &[thrift, basic], 1),
        ("POST /cliservice/", &[thrift, basic], 1),
        ("POST /mdx", &[xml, basic], 2),
        ("POST /MDX", &[xml, basic], 2),
        ("GET /", &[], 3),
        ("GET /timbr/get_timbr_user_token/", &[("Cookie", "session=x")], 3),
        ("POST /login/", &[("Content-Type", "application/x-www-form-urlencoded")], 3),
    ] {
        let before = services.each_ref().map(|service| service.log().len());
        let response = gateway.client().send(line, headers, if line.starts_with("POST") { b"x" } else { b"" });
        assert_eq!(response.status, 200, "{line}: {response:?}");
        let reached: Vec<_> = (0..4).filter(|index| services[*index].log().len() > before[*index]).collect();
        assert_eq!(reached, [service], "{line}");
    }
    for line in ["GET /timbr/api/get_ontologies/", "POST /timbr-server", "POST /mdx", "GET /TIMBR/API/get_ontologies/"]
    {
        assert!(gateway.client().send(line, &[], b"").status >= 400, "{line}");
    }
    let endpoints = gateway.get("/upstreams");
    assert_eq!(endpoints["endpoints"].as_array().map(Vec::len), Some(4));
}

#[test]
fn the_values_of_the_chart_have_the_same_configuration() {
    let values = file::parse(&shipped("helm/timbr-gateway/ci/all-services-values.yaml")).expect("valid");
    assert_eq!(values["config"], file::parse(&shipped("deploy/timbr/gateway.yaml")).expect("valid"));
}
