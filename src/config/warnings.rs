//! Reports settings that are valid but probably not intended.

use crate::config::options::{AUTH, AUTHORIZATION};
use crate::config::sources::{Problem, Settings};
use crate::config::{Config, VerifierOptions};

/// Warnings for `config check`, `doctor` and the log at start.
pub fn warnings(config: &Config, settings: &Settings) -> Vec<Problem> {
    rules_without_password_check(config, settings).into_iter().collect()
}

/// SECURITY: rules name users, but with `salt-holder` any holder of the salt can use any user name. This is a warning
/// and not a problem, because rules can be intended to separate cooperating clients.
fn rules_without_password_check(config: &Config, settings: &Settings) -> Option<Problem> {
    let trusted = settings.values.get(AUTH.trust_salt_holder.key).is_some_and(|word| word.text.expose() == "true");
    let salt_holder = matches!(config.auth.verifier, VerifierOptions::SaltHolder);
    let rules = config.authorization.as_ref().is_some_and(|authorization| !authorization.rules.is_empty());
    (rules && salt_holder && !trusted).then(|| {
        Problem::new(
            AUTHORIZATION.rules.key,
            "auth.verifier=salt-holder checks no password, so every holder of the salt can use any user name, and no rule \
             restricts it. Check passwords (auth.verifier=users-file), or accept this with \
             auth.trust_salt_holder=true",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load_with_settings;

    #[test]
    fn rules_without_password_check_cause_a_warning() {
        let warned = |more: &[(&str, &str)]| {
            let (config, settings) = load_with_settings("", more).expect("valid");
            warnings(&config, &settings).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let rules = [("AUTHORIZATION_MODE", "enforce"), ("AUTHORIZATION_RULES", "[{users: '*'}]")];
        let warnings = warned(&rules);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("authorization.rules: auth.verifier=salt-holder checks no password"),
            "{warnings:?}"
        );
        let trusted = [rules[0], rules[1], ("AUTH_TRUST_SALT_HOLDER", "true")];
        let checked = [rules[0], rules[1], ("AUTH_VERIFIER", "users-file"), ("AUTH_USERS_FILE", "/users")];
        for silent in [&trusted[..], &checked, &[]] {
            assert_eq!(warned(silent), [""; 0]);
        }
    }
}
