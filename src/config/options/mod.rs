//! Every option of the gateway, each defined once: from here come the flags, the environment variables, the keys
//! of the file, their help and their defaults.

mod identity;
mod running;
mod serving;
mod store;

pub use crate::config::shape::{API_AUTH_SALT, Opt, PREFIX, Shape, flag_of};

use identity::IDENTITY;
use running::RUNNING;
use serving::SERVING;
use store::STORE;

/// The option with this key.
pub fn find(key: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.key == key)
}

const fn opt(key: &'static str, shape: Shape, default: Option<&'static str>, help: &'static str) -> Opt {
    Opt { key, shape, default, help }
}

/// All options, in the order in which they are documented.
pub const OPTIONS: &[Opt] = &joined::<{ SERVING.len() + IDENTITY.len() + STORE.len() + RUNNING.len() }>(&[
    SERVING, IDENTITY, STORE, RUNNING,
]);

const fn joined<const COUNT: usize>(lists: &[&[Opt]]) -> [Opt; COUNT] {
    let mut all = [lists[0][0]; COUNT];
    let (mut list, mut filled) = (0, 0);
    while list < lists.len() {
        let mut index = 0;
        while index < lists[list].len() {
            all[filled] = lists[list][index];
            (index, filled) = (index + 1, filled + 1);
        }
        list += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_others_script_against() {
        let variables: Vec<String> = OPTIONS.iter().map(Opt::variable).collect();
        for name in [
            "API_AUTH_SALT",
            "TIMBR_GATEWAY_UPSTREAM_URL",
            "TIMBR_GATEWAY_LISTEN_HTTP",
            "TIMBR_GATEWAY_LISTEN_HTTPS",
            "TIMBR_GATEWAY_LISTEN_ADMIN",
            "TIMBR_GATEWAY_TLS_CERT_FILE",
            "TIMBR_GATEWAY_TLS_KEY_FILE",
            "TIMBR_GATEWAY_UPSTREAM_CREDENTIAL",
            "TIMBR_GATEWAY_UPSTREAM_API_KEY",
            "TIMBR_GATEWAY_AUTH_VERIFIER",
            "TIMBR_GATEWAY_TOKENS_FOREIGN",
            "TIMBR_GATEWAY_TOKENS_KEYS_FILE",
            "TIMBR_GATEWAY_WORKERS",
        ] {
            assert!(variables.iter().any(|variable| variable == name), "{name}");
        }
        assert_eq!(find("listen.https").and_then(Opt::flag).as_deref(), Some("listen-https"));
    }

    #[test]
    fn no_secret_has_a_flag() {
        for option in OPTIONS.iter().filter(|option| option.shape == Shape::Secret) {
            assert_eq!(option.flag(), None, "{}", option.key);
            assert!(option.file_twin().is_some());
        }
    }

    #[test]
    fn keys_are_unique_and_no_key_is_a_folder_of_another() {
        for (i, a) in OPTIONS.iter().enumerate() {
            for b in &OPTIONS[i + 1..] {
                assert_ne!(a.key, b.key);
                assert!(!b.key.starts_with(&format!("{}.", a.key)), "{} / {}", a.key, b.key);
            }
        }
    }
}
