//! Loads configurations for the tests of this folder.

use super::{Config, LimitOptions, Settings, Sources};

pub const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

impl LimitOptions {
    /// The defaults, and no limits on failures.
    pub fn unlimited() -> LimitOptions {
        let limits = load("", &[]).expect("the defaults are valid").limits;
        LimitOptions { failures_per_address: 0, failures_per_user: 0, tokens_per_address: 0, ..limits }
    }
}

/// Loads a file with this text and these variables, `TIMBR_GATEWAY_` omitted. A salt and a backend are added unless
/// they are given. All problems, a line each, are the error.
pub fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    load_with_settings(file, variables).map(|(config, _)| config)
}

pub fn load_with_settings(file: &str, variables: &[(&str, &str)]) -> Result<(Config, Settings), String> {
    let mut all = vec![("API_AUTH_SALT", SALT)];
    if !file.contains("url") && !variables.iter().any(|(name, _)| name.starts_with("UPSTREAM_URL")) {
        all.push(("UPSTREAM_URL", "http://127.0.0.1:8000"));
    }
    all.retain(|(name, _)| !variables.iter().any(|(other, _)| other == name));
    all.extend_from_slice(variables);
    load_exactly(file, &all)
}

/// The same with nothing added.
pub fn load_exactly(file: &str, variables: &[(&str, &str)]) -> Result<(Config, Settings), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, file).expect("written");
    let full_name =
        |name: &str| if name == "API_AUTH_SALT" { name.to_owned() } else { format!("TIMBR_GATEWAY_{name}") };
    let environment = variables.iter().map(|(name, value)| (full_name(name).into(), (*value).into())).collect();
    let sources = Sources { environment, file: Some(path), ..Sources::default() };
    super::load(&sources).map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
