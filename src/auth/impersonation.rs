//! Impersonation rules: which user may act as which other user (`x-api-impersonate-user`). Knows only proven
//! identities.

use crate::auth::Identity;
use crate::base::glob::Glob;
use crate::base::user_name::UserName;
use crate::config::ImpersonationOptions;

/// The configured impersonation rules.
pub struct Impersonation(pub(super) ImpersonationOptions);

/// Why an impersonation is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// The rule with this index, counted from 0, allows it.
    Rule(usize),
    /// The backend decides, by the client's own key.
    BackendDecides,
}

/// No rule allows the impersonation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rule allows the caller to act as that user")]
pub struct ImpersonationDenied;

impl Impersonation {
    /// Allows the impersonation of the user in the header value `target`. `has_own_upstream_key`: the backend receives
    /// the client's own key, so it can decide by that.
    ///
    /// SECURITY: without a rule the impersonation is denied if the gateway asserts the caller's identity.
    pub fn permit(
        &self,
        identity: Identity,
        target: &[u8],
        has_own_upstream_key: bool,
    ) -> Result<(Identity, Permission), ImpersonationDenied> {
        let target = UserName::parse(target).ok();
        if let Some(target) = target
            && let Some(rule) = self.matching_rule(&identity, &target)
        {
            return Ok((identity.impersonating(target), Permission::Rule(rule)));
        }
        if has_own_upstream_key && self.0.backend_decides {
            return Ok((identity, Permission::BackendDecides));
        }
        Err(ImpersonationDenied)
    }

    fn matching_rule(&self, identity: &Identity, target: &UserName) -> Option<usize> {
        let mut rules = self.0.rules.iter();
        rules.position(|rule| identity.is_one_of(&rule.users, &rule.groups) && Glob::any(&rule.act_as, target.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rules::ImpersonationRule;

    #[test]
    fn an_impersonation_needs_a_rule_or_the_backends_decision() {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(*text)).collect();
        let rules = vec![
            ImpersonationRule { users: globs(&["root"]), groups: Vec::new(), act_as: globs(&["*"]) },
            ImpersonationRule {
                users: globs(&["svc-*", "bi"]),
                groups: globs(&["leads"]),
                act_as: globs(&["*@example.com"]),
            },
        ];
        let impersonation =
            |backend_decides| Impersonation(ImpersonationOptions { rules: rules.clone(), backend_decides });
        for (user, named, own_key, backend_decides, expected) in [
            (Some("root"), "alice", false, true, Some(Permission::Rule(0))),
            (Some("svc-etl"), "alice@example.com", false, true, Some(Permission::Rule(1))),
            (Some("svc-etl"), "alice@example.com", true, true, Some(Permission::Rule(1))),
            (Some("svc-etl"), "root", false, true, None),
            (Some("alice"), "alice@example.com", false, true, None),
            (Some("alice"), "bob", true, true, Some(Permission::BackendDecides)),
            (Some("alice"), "bob", true, false, None),
            (None, "bob", true, true, Some(Permission::BackendDecides)),
            (None, "bob", true, false, None),
            (None, "bob", false, true, None),
            (Some("root"), "a:b", false, true, None),
        ] {
            let permitted = impersonation(backend_decides).permit(Identity::of_user(user), named.as_bytes(), own_key);
            let case = format!("{user:?} {named:?} {own_key} {backend_decides}");
            assert_eq!(permitted.as_ref().ok().map(|(_, why)| *why), expected, "{case}");
            if let Ok((identity, Permission::Rule(_))) = permitted {
                assert_eq!(identity.impersonated_user().expect("it does").as_str(), named);
            }
        }
    }
}
