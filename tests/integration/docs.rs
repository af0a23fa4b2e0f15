//! What the documents say is what the code does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use timbr_gateway::config::options::OPTIONS;
use timbr_gateway::config::schema::entries_of;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::gateway::advice::CATALOGUE;
use timbr_gateway::metrics::Metrics;

use crate::support::bearer::SALT;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The reference as it must stand in `docs/configuration.md`, between its two marks.
fn reference() -> String {
    let mut text = String::from("| option | value | default | meaning |\n| --- | --- | --- | --- |\n");
    for option in OPTIONS {
        let value = option.value_name().replace('|', " or ");
        let default = option.default.map_or(String::new(), |text| format!("`{text}`"));
        let _ = writeln!(text, "| `{}` | {value} | {default} | {} |", option.key, option.help);
    }
    text
}

/// The table of the keys of a list's entries.
fn table(list: &str) -> String {
    let mut text = String::from("| key | meaning |\n| --- | --- |\n");
    for field in entries_of(list).expect("a list") {
        let _ = writeln!(text, "| `{}` | {} |", field.key, field.meaning);
    }
    text
}

/// Run with `BLESS=1` to write the reference anew.
#[test]
fn the_configuration_reference_is_what_the_code_takes() {
    let path = repository().join("docs/configuration.md");
    let mut text = std::fs::read_to_string(&path).expect("the reference");
    let tables = ["routes", "auth.jwt_issuers", "authorization.rules"];
    let generated = tables.iter().map(|list| (*list, table(list))).chain([("options", reference())]);
    for (name, expected) in generated {
        let marks = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
        let (before, rest) = text.split_once(&marks.0).expect("the first mark");
        let (now, after) = rest.split_once(&marks.1).expect("the second mark");
        if std::env::var_os("BLESS").is_some() {
            text = [before, &marks.0, &expected, &marks.1, after].concat();
            std::fs::write(&path, &text).expect("written");
        } else {
            assert!(
                now == expected,
                "{name} of docs/configuration.md is out of date; BLESS=1 cargo test writes it anew"
            );
        }
    }
}

/// Each sample is read as a file of its own, with the files that it names at hand.
#[test]
fn the_samples_of_the_configuration_are_valid() {
    let page = std::fs::read_to_string(repository().join("docs/configuration.md")).expect("the page");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("salt"), SALT).expect("written");
    std::fs::write(at("service-key"), "tk_service").expect("written");
    std::fs::write(at("ldap-password"), "secret").expect("written");
    let samples: Vec<_> =
        page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(samples.len() >= 3);
    for sample in samples {
        let here = folder.path().to_str().expect("text");
        let sample = sample.replace("/run/secrets", here).replace("/etc/timbr-gateway", here);
        std::fs::write(at("gateway.yaml"), &sample).expect("written");
        let mut environment = vec![];
        if !sample.contains("api_auth_salt") {
            environment.push(("API_AUTH_SALT".into(), SALT.into()));
            environment.push(("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into()));
        }
        let sources = Sources { environment, file: Some(at("gateway.yaml")), ..Sources::default() };
        assert!(load(&sources).is_ok(), "{:?} in\n{sample}", load(&sources).err());
    }
}

#[test]
fn every_reason_is_explained() {
    let source = std::fs::read_to_string(repository().join("src/gateway/rejection.rs")).expect("the source");
    let reasons = source.split("pub fn reason(").nth(1).expect("the function");
    let reasons = reasons.split("pub fn ").next().expect("what follows it");
    let reasons: Vec<_> = reasons.split('"').skip(1).step_by(2).collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    let page = std::fs::read_to_string(repository().join("docs/errors.md")).expect("the catalogue");
    for reason in &reasons {
        assert!(page.contains(&format!("| `{reason}` |")), "{reason} is missing from docs/errors.md");
    }
    let explained = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(explained, reasons.len(), "docs/errors.md explains what no request can meet");
}

/// Run with `BLESS=1` to write the explanations anew.
#[test]
fn the_catalogue_of_errors_says_what_operators_are_told() {
    let path = repository().join("docs/errors.md");
    let page = std::fs::read_to_string(&path).expect("the catalogue");
    let anew: String = page
        .lines()
        .map(|line| {
            let row = line.strip_prefix("| `").and_then(|row| row.split_once("` | "));
            let Some((reason, rest)) = row else { return format!("{line}\n") };
            let (status, _) = rest.split_once(" | ").expect("a status");
            let (reason, advice) = CATALOGUE
                .iter()
                .find(|(name, _)| *name == reason)
                .unwrap_or_else(|| panic!("no advice for {reason}"));
            format!("| `{reason}` | {status} | {advice} |\n")
        })
        .collect();
    let explained = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(explained, CATALOGUE.len(), "docs/errors.md and src/gateway/advice.rs have different reasons");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, anew).expect("written");
    } else {
        assert!(page == anew, "docs/errors.md is out of date; BLESS=1 cargo test docs writes it anew");
    }
}

/// Run with `BLESS=1` to write the reference anew.
#[test]
fn the_metrics_reference_is_what_the_code_exports() {
    let mut expected =
        String::from("| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n");
    for one in Metrics::default().described() {
        let labels: Vec<_> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels) = (one.full_name(), labels.join(", "));
        let _ = writeln!(expected, "| `{name}` | {} | {} | {labels} | {} |", one.form, one.unit(), one.help);
    }
    let path = repository().join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).expect("the reference");
    let (before, rest) = page.split_once("<!-- metrics: generated -->\n").expect("the first mark");
    let (now, after) = rest.split_once("<!-- metrics: end -->").expect("the second mark");
    if std::env::var_os("BLESS").is_some() {
        let marks = ["<!-- metrics: generated -->\n", "<!-- metrics: end -->"];
        std::fs::write(&path, [before, marks[0], &expected, marks[1], after].concat()).expect("written");
    } else {
        assert!(now == expected, "docs/metrics.md is out of date; BLESS=1 cargo test docs writes it anew");
    }
}

#[test]
fn the_readme_is_short_and_its_links_lead_somewhere() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("the README");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
    for link in readme.split("](").skip(1) {
        let target = link.split([')', '#']).next().expect("a target");
        if !target.is_empty() && !target.starts_with("http") {
            assert!(repository().join(target).exists(), "{target}");
        }
    }
}
