//! Checks of the lock file: no version with a known vulnerability, only released versions, and one TLS stack. `make
//! deny` uses the advisory database where it is reachable; these checks work offline.

use std::path::Path;

/// Lower versions have an advisory that affects the gateway; see SECURITY.md.
const FLOORS: [(&str, &str); 11] = [
    ("h2", "0.4.16"),              // RUSTSEC-2026-0258: empty DATA frames; RUSTSEC-2024-0332: CONTINUATION
    ("rustls", "0.23.46"),         // RUSTSEC-2026-0285, -0346 to -0349
    ("hyper", "1.12.0"),           // RUSTSEC-2021-0078, -0079: lengths
    ("hyper-util", "0.1.21"),      // with hyper
    ("rustls-webpki", "0.103.13"), // RUSTSEC-2026-0049, -0098, -0099, -0104: names and revocation lists
    ("aws-lc-sys", "0.39.0"),      // RUSTSEC-2026-0044, -0048
    ("tokio", "1.44.2"),           // RUSTSEC-2025-0023: broadcast channels
    ("http", "1.4.0"),
    ("bytes", "1.11.1"),              // RUSTSEC-2026-0007: overflow in `reserve`
    ("tracing-subscriber", "0.3.20"), // RUSTSEC-2025-0055: escape sequences in logs
    ("time", "0.3.47"),               // RUSTSEC-2026-0009: depth of RFC 2822 comments
];

/// A second TLS stack would need its own updates; compressed certificates allow decompression bombs.
const UNWANTED: [&str; 8] =
    ["openssl", "openssl-sys", "native-tls", "boring", "gnutls", "brotli", "brotli-decompressor", "serde_yaml"];

/// Name and version of each package in a lock file.
fn packages(lock: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(lock);
    let text = std::fs::read_to_string(&path).expect("a lock file");
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")).map(str::to_owned));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let blocks = text.split("[[package]]").skip(1);
    blocks.map(|block| (value(block, "name").expect("a name"), value(block, "version").expect("a version"))).collect()
}

fn numbers(version: &str) -> [u64; 3] {
    let release = version.split(['-', '+']).next().expect("one part at least");
    let mut parts = release.split('.').map(|part| part.parse().expect("a number"));
    [(); 3].map(|()| parts.next().expect("three numbers"))
}

#[test]
fn no_dependency_has_a_known_vulnerability() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let packages = packages(lock);
        for (name, floor) in FLOORS {
            let found: Vec<_> = packages.iter().filter(|(other, _)| other == name).collect();
            assert!(!found.is_empty(), "{lock}: {name} is not in it any more; take its floor away");
            for (_, version) in found {
                assert!(numbers(version) >= numbers(floor), "{lock}: {name} {version} is below {floor}");
            }
        }
    }
}

#[test]
fn every_version_is_a_release_from_the_registry() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for (name, version) in packages(lock) {
            // The part after `+` is build metadata, not a pre-release.
            let version_proper = version.split('+').next().expect("one part at least");
            assert!(!version_proper.contains('-'), "{lock}: {name} {version} is a pre-release");
        }
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(lock)).expect("text");
        for line in text.lines().filter(|line| line.starts_with("source = ")) {
            assert_eq!(line, "source = \"registry+https://github.com/rust-lang/crates.io-index\"", "{lock}");
        }
    }
}

#[test]
fn there_is_one_tls_stack() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for (name, version) in packages(lock) {
            assert!(!UNWANTED.contains(&name.as_str()), "{lock}: {name} {version}");
        }
    }
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let manifest = manifest.expect("the manifest");
    let rustls = manifest.lines().find(|line| line.starts_with("rustls = ")).expect("it is there");
    assert!(!rustls.contains("brotli") && !rustls.contains("zlib"), "no compressed certificates: {rustls}");
}
