//! The generated documents match the code.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use timbr_gateway::config::options;
use timbr_gateway::config::schema::entry_keys;
use timbr_gateway::config::{Sources, load};
use timbr_gateway::gateway::rejection::{ErrorFormat, Rejection};
use timbr_gateway::http::headers::HeaderName;
use timbr_gateway::observability::metrics::Metrics;
use timbr_gateway::observability::phase::Phase;

use crate::support::bearer::SALT;
use crate::support::client::Client;
use crate::support::gateway::Gateway;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The generated option reference for `docs/configuration.md`.
fn reference() -> String {
    let mut text = String::from("| option | value | default | meaning |\n| --- | --- | --- | --- |\n");
    for option in options::all() {
        let value = option.value_name().replace('|', " or ");
        let default = option.default.map_or(String::new(), |text| format!("`{text}`"));
        let range = option.range.map(|(min, max)| format!(" From {min} to {max}.")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {value} | {default} | {}{range} |", option.key, option.help);
    }
    text
}

/// The table of the keys of a list's entries.
fn table(list: &str) -> String {
    let mut text = String::from("| key | meaning |\n| --- | --- |\n");
    for field in entry_keys(list).expect("a list") {
        let _ = writeln!(text, "| `{}` | {} |", field.key, field.meaning);
    }
    text
}

/// Run with `BLESS=1` to update the reference.
#[test]
fn the_configuration_reference_is_up_to_date() {
    for list in ["routes", "auth.jwt_issuers", "authorization.rules", "limits.rules"] {
        assert_generated("docs/configuration.md", list, &table(list));
    }
    assert_generated("docs/configuration.md", "options", &reference());
}

/// Each sample is loaded as a file, with the files that it refers to.
#[test]
fn the_samples_of_the_configuration_are_valid() {
    let page = |name: &str| std::fs::read_to_string(repository().join(name)).expect("the page");
    let pages = ["configuration", "choose", "guide/migration"].map(|name| page(&format!("docs/{name}.md")));
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("salt"), SALT).expect("written");
    std::fs::write(at("service-key"), "tk_service").expect("written");
    std::fs::write(at("ldap-password"), "secret").expect("written");
    let yaml = pages.iter().flat_map(|page| page.split("```yaml\n").skip(1));
    let samples: Vec<_> = yaml.filter_map(|rest| rest.split("```").next()).collect();
    assert!(samples.len() >= 7);
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

/// Each cell of the table in docs/choose.md says whether the gateway accepts the combination, and with which settings.
#[test]
fn the_table_of_combinations_is_what_the_configuration_accepts() {
    let page = std::fs::read_to_string(repository().join("docs/choose.md")).expect("the page");
    let section = page.split("## All combinations").nth(1).and_then(|rest| rest.split("\n## ").next());
    let lines = section.expect("the section").lines();
    let mut rows = lines.filter_map(|line| {
        Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::trim).collect::<Vec<_>>())
    });
    let codes = |cell: &str| -> Vec<_> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let credentials = codes(&rows.next().expect("the head").concat());
    let mut cells = 0;
    for row in rows.filter(|row| row[0].starts_with('`')) {
        let verifier = codes(row[0]).swap_remove(0);
        for (credential, cell) in credentials.iter().zip(&row[1..]) {
            let mut flags = BTreeMap::from([
                ("auth.verifier".to_owned(), verifier.clone()),
                ("upstream.credential".to_owned(), credential.clone()),
            ]);
            let mut environment = vec![
                ("API_AUTH_SALT".into(), SALT.into()),
                ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into()),
            ];
            match verifier.as_str() {
                "users-file" => drop(flags.insert("auth.users_file".into(), "/users".into())),
                "ldap" => {
                    flags.insert("ldap.url".into(), "ldaps://directory.example.com".into());
                    flags.insert("ldap.base_dn".into(), "dc=example,dc=com".into());
                }
                _ => {}
            }
            if credential == "impersonate" {
                environment.push(("TIMBR_GATEWAY_UPSTREAM_API_KEY".into(), "tk_service".into()));
            }
            let problems = |flags: &BTreeMap<String, String>| -> Vec<String> {
                let sources = Sources { flags: flags.clone(), environment: environment.clone(), file: None };
                let problems = load(&sources).err().unwrap_or_default();
                problems.into_iter().map(|problem| problem.subject).collect()
            };
            let combination = format!("{verifier}, {credential}: {cell}");
            let is_about_the_verifier = |subjects: &[String]| {
                !subjects.is_empty() && subjects.iter().all(|subject| subject.starts_with("auth."))
            };
            // Such as `auth.trust_salt_holder: true`, or a path without a value.
            let needed: Vec<_> = codes(cell).into_iter().filter(|code| code.contains('.')).collect();
            if !needed.is_empty() || cell.starts_with("refused at start") {
                assert!(is_about_the_verifier(&problems(&flags)), "{combination}: {:?}", problems(&flags));
            }
            for setting in needed {
                let (key, value) = setting.split_once(": ").unwrap_or((&setting, "/user"));
                flags.insert(key.to_owned(), value.to_owned());
            }
            let expected = cell.starts_with("refused at start");
            assert_eq!(!problems(&flags).is_empty(), expected, "{combination}: {:?}", problems(&flags));
            cells += 1;
        }
    }
    assert_eq!((credentials.len(), cells), (4, 20));
}

/// Held while a page is read and written: two tests may write different parts of one page.
static PAGE_UPDATE: Mutex<()> = Mutex::new(());

/// Compares the part of a page between two marks with what it must be. With `BLESS=1` it writes that part instead.
fn assert_generated(page: &str, name: &str, expected: &str) {
    let _update = PAGE_UPDATE.lock();
    let path = repository().join(page);
    let text = std::fs::read_to_string(&path).expect("the page");
    let marks = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = text.split_once(&marks.0).expect("the first mark");
    let (current, after) = rest.split_once(&marks.1).expect("the second mark");
    if std::env::var_os("BLESS").is_some() {
        replace_page(&path, &[before, &marks.0, expected, &marks.1, after].concat());
    } else {
        assert!(current == expected, "{page} is out of date; `BLESS=1 cargo test docs` writes it");
    }
}

/// Writes a page as a whole: other tests read all pages meanwhile.
pub fn replace_page(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("replaced");
}

#[test]
fn the_error_catalogue_is_the_table_of_rejections() {
    let mut text = String::from(
        "| reason | status | at fault | message to the client | what happened, and what to do |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for rejection in Rejection::examples() {
        let entry = rejection.entry();
        let (headers, body) = rejection.response(b"", ErrorFormat::Json);
        let body: serde_json::Value = serde_json::from_slice(&body).expect("the envelope");
        let retry = if headers.contains(HeaderName::RetryAfter) { ", `Retry-After`" } else { "" };
        let _ = writeln!(
            text,
            "| `{}` | {}{retry} | {} | {} | {} |",
            entry.reason,
            entry.status.as_u16(),
            entry.fault.as_str(),
            body["data"].as_str().expect("a message"),
            entry.remedy,
        );
    }
    assert_generated("docs/errors.md", "errors", &text);
}

#[test]
fn the_reasons_in_the_alert_rules_exist() {
    let rules = std::fs::read_to_string(repository().join("deploy/prometheus/rules.yaml")).expect("the rules");
    let examples = Rejection::examples();
    let patterns: Vec<_> = rules.split("reason=~\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(patterns.len() >= 3, "{patterns:?}");
    for pattern in patterns {
        let (prefix, words) = pattern.trim_end_matches(')').split_once('(').unwrap_or(("", pattern));
        for reason in words.split('|').map(|word| format!("{prefix}{word}")) {
            assert!(examples.iter().any(|known| known.reason() == reason), "{reason} is not a reason");
        }
    }
}

/// Paths are an interface, so the documents name each of them.
#[test]
fn every_path_of_the_admin_listener_is_documented() {
    let gateway = Gateway::start(SocketAddr::from(([127, 0, 0, 1], 1)), &[]);
    let response = Client::connect(gateway.admin()).send("GET /unknown", &[], b"");
    let page = std::fs::read_to_string(repository().join("docs/operations.md")).expect("the page");
    let section = page.split("### HTTP API").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let paths = |text: &str| -> Vec<String> {
        let words = text.split([' ', ',', '`', '\n']).filter(|word| word.starts_with('/'));
        words.map(str::to_owned).collect()
    };
    let documented = paths(section);
    let served = paths(response.text());
    assert!(served.len() > 20, "{served:?}");
    for path in served.iter().filter(|path| !path.starts_with("/dashboard-") && !path.contains('.')) {
        let is_prefix = path.len() > 1 && path.ends_with('/');
        let matches = |known: &&String| *known == path || (is_prefix && known.starts_with(path.as_str()));
        assert!(documented.iter().any(|known| matches(&known)), "docs/operations.md does not name {path}");
    }
}

/// Pages with tables whose last column names tests.
#[test]
fn every_test_that_a_page_names_exists() {
    for page in ["SECURITY.md", "docs/attacks.md"] {
        let text = std::fs::read_to_string(repository().join(page)).expect("the page");
        let (mut is_in_table, mut count) = (false, 0);
        for line in text.lines() {
            let last = line.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            is_in_table = line.starts_with('|') && (is_in_table || last == "test");
            for name in last.split('`').skip(1).step_by(2).filter(|_| is_in_table) {
                assert!(has_test(name), "{page} names {name}, which does not exist");
                count += 1;
            }
        }
        assert!(count > 10, "{page}: {count}");
    }
    assert!(!has_test("stores::nothing") && !has_test("get_token::nothing") && !has_test("tests/e2e/nothing.py"));
}

/// Whether this is a file, or a module or function of the integration tests or of the source.
fn has_test(name: &str) -> bool {
    if name.contains('/') {
        return repository().join(name).exists();
    }
    ["tests/integration", "src"].iter().any(|root| {
        let mut place = repository().join(root);
        let mut parts = name.split("::").peekable();
        while let Some(part) = parts.next() {
            let (folder, file) = (place.join(part), place.join(format!("{part}.rs")));
            if !folder.is_dir() && !file.is_file() {
                let file = if place.is_dir() { place.join("mod.rs") } else { place };
                let text = std::fs::read_to_string(file).unwrap_or_default();
                let items = [format!("fn {part}("), format!("mod {part} {{")];
                return parts.peek().is_none() && items.iter().any(|item| text.contains(item));
            }
            place = if folder.is_dir() { folder } else { file };
        }
        true
    })
}

#[test]
fn the_request_path_shows_the_status_codes_of_each_phase() {
    let examples = Rejection::examples();
    let (last, others) = Phase::FORWARD_PATH.split_last().expect("there are phases");
    let after_handshake = 1 + others.iter().position(|phase| *phase == Phase::Handshake).expect("it is one");
    let mut phases = others.to_vec();
    phases.insert(after_handshake, Phase::GetToken);
    phases.extend([*last, Phase::Unknown]);
    let mut text = String::from("```text\n");
    for phase in phases {
        let of_phase = examples.iter().map(Rejection::entry).filter(|entry| entry.phases.contains(&phase));
        let mut codes: Vec<_> = of_phase.map(|entry| entry.status.as_str().to_owned()).collect();
        codes.sort();
        codes.dedup();
        let _ = writeln!(text, "{:<13} {:<54} {}", phase.as_str(), phase.summary(), codes.join(" "));
    }
    text += "```\n";
    assert_generated("ARCHITECTURE.md", "path", &text);
}

/// Run with `BLESS=1` to write the reference again.
#[test]
fn the_metrics_reference_is_up_to_date() {
    let mut expected = String::from("| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n");
    for one in Metrics::default().descriptors() {
        let labels: Vec<_> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels) = (one.full_name(), labels.join(", "));
        let _ = writeln!(expected, "| `{name}` | {} | {} | {labels} | {} |", one.kind.as_str(), one.unit(), one.help);
    }
    assert_generated("docs/metrics.md", "metrics", &expected);
}

#[test]
fn the_readme_is_short() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("the README");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
}

/// All Markdown files of the repository.
fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && !path.is_symlink() && name != "target" && !name.to_string_lossy().starts_with('.') {
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

/// A page without its code blocks.
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

/// The anchors of a page's headings, as Git forges generate them.
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
fn every_link_has_a_target() {
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

/// Where the lines of each feature are: paths below `src`, of which the longest that fits a file decides.
const FEATURES: [(&str, &[&str]); 23] = [
    (
        "HTTP/1 and headers",
        &["http/h1", "http/headers", "downstream/http1", "upstream/exchange", "upstream/connection"],
    ),
    ("HTTP/2", &["downstream/http2", "downstream/frame_meter"]),
    ("client connections, listeners", &["downstream", "http"]),
    ("limits and fair queue", &["admission"]),
    ("TLS", &["tls"]),
    ("request path and rejections", &["gateway"]),
    ("backends: health, balancing, pools, bodies", &["upstream"]),
    ("tokens, bearers, rules, failure limiter", &["auth"]),
    ("verifiers", &["auth/verifier"]),
    ("JWT", &["auth/jwt", "config/jwt"]),
    ("token store: memory and interface", &["store"]),
    ("token store: file", &["store/file"]),
    ("token store: Redis", &["store/redis"]),
    ("configuration", &["config"]),
    ("logs", &["observability/log"]),
    ("metrics", &["observability"]),
    (
        "query journal",
        &[
            "observability/queries",
            "observability/metrics/queries",
            "gateway/query_record",
            "admin/queries",
            "cli/queries",
        ],
    ),
    ("traces", &["observability/trace", "outbound/otlp"]),
    ("admin listener", &["admin"]),
    ("dashboard", &["admin/dashboard"]),
    ("process: workers, reload, drain", &["app", "os", "base", "lib.rs", "main.rs", "outbound"]),
    ("doctor", &["cli/doctor"]),
    ("other subcommands and the demo", &["cli"]),
];

/// A recorded number of lines may be off by this share before the table has to be written again.
const MAX_WEIGHT_DRIFT: f64 = 0.1;

/// Lines of Rust, unit tests included, of each feature.
fn feature_weights() -> Vec<(&'static str, usize)> {
    let root = repository().join("src");
    let mut weights: Vec<_> = FEATURES.iter().map(|(feature, _)| (*feature, 0)).collect();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|ending| ending != "rs") {
                continue;
            }
            let name = path.strip_prefix(&root).expect("below src").to_str().expect("text");
            let candidates = FEATURES.iter().enumerate().flat_map(|(at, (_, paths))| {
                paths.iter().filter(|path| name.starts_with(**path)).map(move |path| (path.len(), at))
            });
            let (_, feature) = candidates.max().unwrap_or_else(|| panic!("src/{name} belongs to no feature"));
            weights[feature].1 += std::fs::read_to_string(&path).expect("text").lines().count();
        }
    }
    weights
}

#[test]
fn the_architecture_page_shows_the_weight_of_each_feature() {
    let weights = feature_weights();
    let total: usize = weights.iter().map(|(_, lines)| lines).sum();
    let mut table = String::from("| feature | lines in `src`, unit tests included |\n| --- | --- |\n");
    for (feature, lines) in weights.iter().chain([&("in all", total)]) {
        let _ = writeln!(table, "| {feature} | {lines} |");
    }
    if std::env::var_os("BLESS").is_some() {
        return assert_generated("ARCHITECTURE.md", "weight", &table);
    }
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("the page");
    for (feature, lines) in weights {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {feature} | ")));
        let recorded = row.and_then(|row| row.trim_end_matches(" |").parse::<f64>().ok());
        let recorded = recorded.unwrap_or_else(|| panic!("ARCHITECTURE.md has no weight of {feature}"));
        let drift = (lines as f64 - recorded).abs() / recorded;
        assert!(
            drift <= MAX_WEIGHT_DRIFT,
            "{feature} has {lines} lines, ARCHITECTURE.md says {recorded}; `BLESS=1 cargo test docs` writes it"
        );
    }
}

#[test]
fn lines_of_the_architecture_page_fit_a_screen() {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("the page");
    for (number, line) in page.lines().enumerate() {
        assert!(line.chars().count() <= 120, "ARCHITECTURE.md:{}: {line}", number + 1);
    }
}
