//! The configuration file, environment variables and routes. An accepted configuration can be printed and read back.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use timbr_gateway::config::file;
use timbr_gateway::config::print::{OriginComments, to_yaml};
use timbr_gateway::config::{Sources, load};

const SALT: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("timbr-gateway-fuzz-{}.yaml", std::process::id()))
});

fn read(text: &[u8]) -> Option<String> {
    std::fs::write(&*FILE, text).expect("written");
    let environment =
        vec![("API_AUTH_SALT".into(), SALT.into()), ("TIMBR_GATEWAY_UPSTREAM_URL".into(), "http://127.0.0.1:1".into())];
    let sources = Sources { environment, file: Some(FILE.clone()), ..Sources::default() };
    match load(&sources) {
        Ok((config, settings)) => {
            assert!(
                !config.salts.is_empty() && config.workers > 0 && config.routes.iter().all(|r| !r.prefixes.is_empty())
            );
            Some(to_yaml(&settings, &config.routes, OriginComments::Omitted))
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            // An invalid salt is never printed.
            assert!(!format!("{problems:?}").contains(SALT));
            None
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = file::parse(text);
    }
    if let Some(printed) = read(data) {
        assert!(!printed.contains(SALT));
        if printed.contains("# api_key: (set") {
            return; // Secrets are not printed, so they are missing when the output is read back.
        }
        let again = read(printed.as_bytes());
        assert_eq!(again.as_deref(), Some(&*printed));
    }
});
