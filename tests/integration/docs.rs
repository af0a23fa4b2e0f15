//! What the documents say is what the code does.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use timbr_gateway::config::options::OPTIONS;
use timbr_gateway::config::schema::entries_of;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::gateway::advice::CATALOGUE;
use timbr_gateway::gateway::faults::specimens;
use timbr_gateway::http::headers::HeaderName;
use timbr_gateway::observability::metrics::Metrics;

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

/// The catalogue of `docs/errors.md`: what clients get, and what operators are told.
fn catalogue() -> String {
    let mut text = String::from(
        "| reason | status | at fault | the client reads | what happened, and what to do |\n| --- | --- | --- | --- | --- |\n",
    );
    let specimens = specimens();
    assert_eq!(
        specimens.len(),
        CATALOGUE.len(),
        "src/gateway/faults.rs and advice.rs have different reasons"
    );
    for (reason, advice) in CATALOGUE {
        let rejection = specimens.iter().find(|one| one.reason() == *reason);
        let rejection = rejection.unwrap_or_else(|| panic!("src/gateway/faults.rs has no {reason}"));
        let (fields, body) = rejection.answer(b"");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("the envelope");
        let retry = if fields.contains(HeaderName::RetryAfter) { ", `Retry-After`" } else { "" };
        let _ = writeln!(
            text,
            "| `{reason}` | {}{retry} | {} | {} | {advice} |",
            rejection.status().as_u16(),
            rejection.fault().word(),
            body["data"].as_str().expect("a sentence"),
        );
    }
    text
}

/// Run with `BLESS=1` to write the catalogue anew.
#[test]
fn the_catalogue_of_errors_says_what_clients_and_operators_are_told() {
    let path = repository().join("docs/errors.md");
    let page = std::fs::read_to_string(&path).expect("the catalogue");
    let (before, rest) = page.split_once("<!-- errors: generated -->\n").expect("the first mark");
    let (now, after) = rest.split_once("<!-- errors: end -->").expect("the second mark");
    let expected = catalogue();
    if std::env::var_os("BLESS").is_some() {
        let marks = ["<!-- errors: generated -->\n", "<!-- errors: end -->"];
        std::fs::write(&path, [before, marks[0], &expected, marks[1], after].concat()).expect("written");
    } else {
        assert!(now == expected, "docs/errors.md is out of date; BLESS=1 cargo test docs writes it anew");
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
fn the_readme_is_short() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("the README");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
}

/// All pages of the repository.
fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir()
                && !path.is_symlink()
                && name != "target"
                && !name.to_string_lossy().starts_with('.')
            {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&repository(), &mut found);
    found
}

/// A page without its blocks of code.
fn prose(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("a page");
    let mut in_code = false;
    let is_prose = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    };
    text.lines().filter(is_prose).map(str::to_owned).collect()
}

/// The anchors of a page's headings, as forges make them.
fn anchors(path: &Path) -> Vec<String> {
    let headings = prose(path).into_iter().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().chars().filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
                _ => None,
            });
            kept.collect()
        })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = prose(&page).join("\n");
        for link in text.split("](").skip(1) {
            let link = link.split([')', ' ']).next().expect("a target");
            if link.starts_with("http") || link.starts_with("mailto:") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match target {
                "" => page.clone(),
                target => page.parent().expect("a folder").join(target),
            };
            let has_anchor = || anchor.is_empty() || anchors(&path).iter().any(|one| one == anchor);
            if !path.exists() || (path.extension().is_some_and(|ending| ending == "md") && !has_anchor()) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
