//! What is valid, and yet may not be what somebody meant.

use crate::config::options::{AUTH, AUTHORIZATION};
use crate::config::sources::{Problem, Settings};
use crate::config::{Config, VerifierOptions};

/// Sentences for `config check`, `doctor` and the log at start.
pub fn warnings(config: &Config, settings: &Settings) -> Vec<Problem> {
    rules_without_password_check(config, settings).into_iter().collect()
}

/// SECURITY: rules name users, and here whoever holds the salt names himself. That is told and not refused: rules may be
/// meant for order among those who hold it.
fn rules_without_password_check(config: &Config, settings: &Settings) -> Option<Problem> {
    let trusted =
        settings.values.get(AUTH.trust_salt_holder.key).is_some_and(|word| word.text.expose() == "true");
    let named_by_themselves = matches!(config.auth.verifier, VerifierOptions::SaltHolder);
    let rules = config.authorization.as_ref().is_some_and(|authorization| !authorization.rules.is_empty());
    (rules && named_by_themselves && !trusted).then(|| {
        Problem::new(
            AUTHORIZATION.rules.key,
            "auth.verifier=salt-holder checks no password, so whoever holds the salt is whom he says he is, and no rule \
             keeps him out. Check passwords (auth.verifier=users-file), or say that this is meant: \
             auth.trust_salt_holder=true",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn rules_that_no_password_stands_behind_are_told_of() {
        let warned = |more: &[(&str, &str)]| {
            let environment = [
                ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
                ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:8000"),
            ];
            let environment =
                environment.iter().chain(more).map(|(k, v)| ((*k).into(), (*v).into())).collect();
            let (config, settings) = load(&Sources { environment, ..Sources::default() }).expect("valid");
            warnings(&config, &settings).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let rules = [
            ("TIMBR_GATEWAY_AUTHORIZATION_MODE", "enforce"),
            ("TIMBR_GATEWAY_AUTHORIZATION_RULES", "[{users: '*'}]"),
        ];
        let told = warned(&rules);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("authorization.rules: auth.verifier=salt-holder checks no password"),
            "{told:?}"
        );
        let trusted = [rules[0], rules[1], ("TIMBR_GATEWAY_AUTH_TRUST_SALT_HOLDER", "true")];
        let checked = [
            rules[0],
            rules[1],
            ("TIMBR_GATEWAY_AUTH_VERIFIER", "users-file"),
            ("TIMBR_GATEWAY_AUTH_USERS_FILE", "/users"),
        ];
        for silent in [&trusted[..], &checked, &[]] {
            assert_eq!(warned(silent), [""; 0]);
        }
    }
}
