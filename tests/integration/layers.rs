//! The repository's own rules, read off its source.

use std::path::{Path, PathBuf};

/// The modules by layer; a module uses only what stands above its own line, or within itself.
const LAYERS: [&[&str]; 8] = [
    &[
        "clock",
        "secret",
        "shutdown",
        "telemetry",
        "media_type",
        "user_name",
        "watched_files",
        "glob",
        "hardening",
        "service_manager",
        "passed_sockets",
        "in_force",
        "kernel_pipe",
        "http1",
        "fields",
        "prehashed",
        "octets",
        "client_body",
        "descriptors",
        "metrics",
        "steps",
        "trace",
    ],
    &["config"],
    &["store", "upstream", "tls", "admission", "fetch", "control", "otlp"],
    &["auth"],
    &["gateway"],
    &["connection", "listener", "admin"],
    &["server", "demo"],
    &["cli"],
];

/// Uses within a layer that are meant.
const SIDEWAYS: [(&str, &str); 18] = [
    ("metrics", "telemetry"),
    ("descriptors", "kernel_pipe"),
    ("steps", "clock"),
    ("steps", "metrics"),
    ("steps", "trace"),
    ("metrics", "trace"),
    ("trace", "metrics"),
    ("otlp", "fetch"),
    ("otlp", "tls"),
    ("telemetry", "clock"),
    ("telemetry", "octets"),
    ("media_type", "octets"),
    ("http1", "octets"),
    ("http1", "clock"),
    ("http1", "fields"),
    ("upstream", "tls"),
    ("fetch", "tls"),
    ("admin", "listener"),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The top-level module that a file belongs to.
fn module(path: &Path) -> String {
    let within = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
    let first = within.components().next().expect("a name").as_os_str().to_str().expect("text");
    first.trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("{module} is in no layer"))
}

/// The part of a file before its tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().expect("split gives one at least")
}

#[test]
fn modules_use_only_lower_layers() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let user = module(&path);
        if user == "lib" || user == "main" {
            continue;
        }
        for line in without_tests(&text).lines() {
            let mut rest = line;
            while let Some(at) = rest.find("crate::") {
                rest = &rest[at + "crate::".len()..];
                let used: String =
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let meant = SIDEWAYS.contains(&(user.as_str(), used.as_str()));
                if used != user && layer(&used) >= layer(&user) && !meant {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_two_things_can_be_sent_to_the_backend() {
    let mut senders: Vec<_> = sources()
        .iter()
        .filter(|(_, text)| text.contains("impl Outgoing for"))
        .map(|(path, _)| path.file_name().expect("a name").to_str().expect("text").to_owned())
        .collect();
    senders.sort();
    assert_eq!(senders, ["foreign.rs", "rewrite.rs"]);
}

#[test]
fn files_stay_small_enough_to_read() {
    for (path, text) in sources() {
        let lines = without_tests(&text).lines().count();
        assert!(lines <= 450, "{} has {lines} lines; is there a second idea in it?", path.display());
    }
}

#[test]
fn nothing_is_left_to_do_later_in_the_code() {
    for (path, text) in sources() {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let wrong = [".unwrap()", "todo!", "unimplemented!", "dbg!", "TODO", "FIXME", "XXX"];
            assert!(
                !wrong.iter().any(|word| line.contains(word)),
                "{}:{}: {line}",
                path.display(),
                number + 1
            );
        }
    }
}
