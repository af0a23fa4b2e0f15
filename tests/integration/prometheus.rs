//! A real Prometheus scrapes the gateway; the rules and the dashboard in `deploy/` use only existing metrics.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use timbr_gateway::observability::metrics::{MetricType, Metrics};

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::h2_client::H2Client;
use crate::support::upstream::Upstream;
use crate::support::wait_until;

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// Runs `promtool`, which is part of Prometheus; `tests/servers` installs it.
fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(deployed("prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn satisfied(output: &Output) {
    let told = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&told));
}

/// A gateway with successful and failed requests, over both protocols.
fn used(upstream: &Upstream) -> Gateway {
    let options = [("LIMITS_RULES", "[{name: bots, requests_per_second: 100}]"), ("JOURNAL_ENABLED", "true")];
    let (gateway, token) = Gateway::with_token(upstream.address(), &options);
    let mut client = gateway.client();
    for _ in 0..3 {
        let headers = [("x-api-key", token.as_str()), ("content-type", "application/json")];
        assert_eq!(client.send("POST /timbr/api/query/", &headers, b"{}").status, 200);
    }
    assert_eq!(gateway.client().send("GET /nowhere", &[], b"").status, 404);
    assert_eq!(gateway.client().send("POST /timbr/api/query/", &[], b"{}").status, 400);
    let h2 = H2Client::connect(gateway.https(), gateway.certificate_pem());
    assert_eq!(h2.send("GET /nowhere", &[], b"").status, 404);
    gateway
}

fn exported(gateway: &Gateway, accept: &str) -> (String, String) {
    let response =
        Client::connect(gateway.admin()).send("GET /metrics", &[("Host", "localhost"), ("accept", accept)], b"");
    assert_eq!(response.status, 200);
    (response.header("content-type").to_owned(), response.text().to_owned())
}

#[test]
fn promtool_accepts_the_exported_metrics() {
    let upstream = Upstream::start();
    let gateway = used(&upstream);
    let (kind, plain) = exported(&gateway, "text/plain; version=0.0.4");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    satisfied(&promtool(&["check", "metrics"], &plain));
    let (kind, open) = exported(&gateway, "application/openmetrics-text; version=1.0.0");
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(open.ends_with("# EOF\n"));
}

#[test]
fn metrics_count_what_happened() {
    let upstream = Upstream::start();
    let gateway = used(&upstream);
    let of = |series: &str| gateway.metric(&format!("timbr_gateway_{series}"));
    let requests = "requests_total{route=\"api\",method=\"POST\",status=\"2xx\",reason=\"\"}";
    wait_until("the last response has ended", || of(requests) == 3.0);
    assert_eq!(of("requests_total{route=\"none\",method=\"GET\",status=\"4xx\",reason=\"not_found\"}"), 2.0);
    assert_eq!(of("upstream_to_head_duration_seconds_count{route=\"api\"}"), 3.0);
    assert_eq!(of("request_body_bytes_total{route=\"api\"}"), 6.0);
    assert_eq!(of("auth_step_duration_seconds_count{step=\"bearer\",outcome=\"ok\"}"), 1.0);
    assert_eq!(of("tls_handshakes_total{version=\"1.3\",resumed=\"false\"}"), 1.0);
    assert_eq!(of("client_connections_opened_total{protocol=\"http/2\"}"), 1.0);
    wait_until("the backend is checked", || of("tokens") == 1.0);
    let (_, text) = exported(&gateway, "text/plain");
    assert!(text.contains("timbr_gateway_certificate_expiry_timestamp_seconds{names="), "{text}");
}

#[test]
fn alert_rules_pass_their_tests() {
    satisfied(&promtool(&["check", "rules", "rules.yaml"], ""));
    satisfied(&promtool(&["test", "rules", "tests.yaml"], ""));
}

#[test]
fn each_alert_has_a_runbook() {
    let rules = std::fs::read_to_string(deployed("prometheus/rules.yaml")).expect("the rules");
    let after = |line: &str, key: &str| line.trim().strip_prefix(key).map(str::to_owned);
    let alerts: Vec<_> = rules.lines().filter_map(|line| after(line, "- alert: ")).collect();
    let runbooks: Vec<_> = rules.lines().filter_map(|line| after(line, "runbook_url: ")).collect();
    let page = "https://github.com/OWNER/timbr-gateway/blob/main/docs/alerts.md#";
    let expected: Vec<_> = alerts.iter().map(|alert| format!("{page}{}", alert.to_lowercase())).collect();
    assert_eq!(runbooks, expected);
    let sections: Vec<_> = include_str!("../../docs/alerts.md").lines().filter_map(|line| after(line, "## ")).collect();
    let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&sections), sorted(&alerts));
}

/// A running server. Killed when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes a gateway every second, with the rules of `deploy/`.
    fn start(gateway: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().expect("a folder");
        let rules = deployed("prometheus/rules.yaml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  \
             - job_name: timbr-gateway\n    static_configs: [{{targets: ['{gateway}']}}]\n",
            rules.display()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("written");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed");
        let server = Prometheus { child, address, _folder: folder };
        wait_until("Prometheus responds", || {
            Client::try_connect(address).is_some_and(|mut client| client.send("GET /-/ready", &[], b"").status == 200)
        });
        server
    }

    fn get(&self, path: &str) -> Value {
        let response = Client::connect(self.address).send(&format!("GET /api/v1/{path}"), &[], b"");
        let value = response.json();
        assert_eq!(value["status"], "success", "{path}: {value}");
        value["data"].clone()
    }

    fn query(&self, expression: &str) -> Vec<Value> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.get(&format!("query?query={escaped}"))["result"].as_array().expect("a vector").clone()
    }
}

/// All texts of a key, at any depth.
fn under(key: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == key => found.push(text.clone()),
                    other => under(key, other, found),
                }
            }
        }
        Value::Array(members) => members.iter().for_each(|member| under(key, member, found)),
        _ => {}
    }
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(deployed("grafana/timbr-gateway.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("JSON")
}

/// The panels' expressions, with Grafana's variables replaced.
fn expressions() -> Vec<String> {
    let mut found = Vec::new();
    under("expr", &dashboard(), &mut found);
    let filled = |text: &String| {
        let text = text.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*");
        assert!(!text.contains('$'), "{text}");
        text
    };
    found.iter().map(filled).collect()
}

#[test]
fn prometheus_accepts_the_metrics_rules_and_panels() {
    let upstream = Upstream::start();
    let gateway = used(&upstream);
    let prometheus = Prometheus::start(gateway.admin());
    let requests = "timbr_gateway_requests_total{route=\"api\",method=\"POST\",status=\"2xx\",reason=\"\"}";
    wait_until("Prometheus has scraped the gateway", || {
        prometheus.query(requests).first().is_some_and(|found| found["value"][1] == "3")
    });
    assert_eq!(prometheus.query("up{job=\"timbr-gateway\"}")[0]["value"][1], "1");
    let expressions = expressions();
    assert!(expressions.len() > 30);
    expressions.iter().for_each(|expression| drop(prometheus.query(expression)));
    // Names and types are those of the reference.
    let metadata = prometheus.get("targets/metadata?match_target=%7Bjob%3D%22timbr-gateway%22%7D");
    let known: BTreeSet<_> =
        metadata.as_array().expect("a list").iter().filter_map(|one| one["metric"].as_str()).collect();
    for one in Metrics::default().descriptors() {
        let name = one.full_name();
        let family = name.strip_suffix("_total").or_else(|| name.strip_suffix("_info")).unwrap_or(&name);
        // This gateway has no persistent store, and no backend name to resolve.
        let may_be_missing = ["timbr_gateway_store_operation", "timbr_gateway_upstream_lookup"];
        let is_there = known.contains(family) || may_be_missing.iter().any(|known| family.starts_with(known));
        assert!(is_there, "{name} in {known:?}");
    }
    // All rules are evaluated without errors.
    wait_until("each rule was evaluated", || {
        let mut health = Vec::new();
        under("health", &prometheus.get("rules"), &mut health);
        assert!(!health.iter().any(|health| health == "err"), "{}", prometheus.get("rules"));
        health.len() > 15 && health.iter().all(|health| health == "ok")
    });
}

/// The metric names in an expression.
fn names(text: &str) -> Vec<&str> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !letter(c))
        .map(|word| word.trim_end_matches(':'))
        .filter(|word| word.starts_with("timbr_gateway") || word.starts_with("process_"))
        .collect()
}

#[test]
fn rules_and_dashboard_use_existing_metrics() {
    let rules = std::fs::read_to_string(deployed("prometheus/rules.yaml")).expect("the rules");
    let recorded: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let mut known: BTreeSet<String> = recorded.iter().map(ToString::to_string).collect();
    for one in Metrics::default().descriptors() {
        let name = one.full_name();
        if one.kind == MetricType::Histogram {
            known.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}")));
        }
        known.insert(name);
    }
    let asked = rules.lines().filter(|line| !line.contains("record:") && !line.trim_start().starts_with("- name:"));
    let mut asked: Vec<String> = asked.map(str::to_owned).collect();
    asked.extend(expressions());
    under("query", &dashboard(), &mut asked);
    let mut count = 0;
    for name in asked.iter().flat_map(|text| names(text)).filter(|name| *name != "timbr_gateway") {
        assert!(known.contains(name), "{name} is not exported");
        count += 1;
    }
    assert!(count > 60, "{count}");
}

#[test]
fn dashboard_panels_have_unique_titles_and_places() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "timbr-gateway");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    let titles: BTreeSet<_> = panels.iter().map(|panel| panel["title"].as_str().expect("a title")).collect();
    assert_eq!((ids.len(), titles.len()), (panels.len(), panels.len()));
}
