//! Who may act as whom.

use crate::config::entry::Entry;
use crate::config::reader::Reader;
use crate::glob::Glob;

const RULES: &str = "impersonation.rules";
const OWN_KEYS: &str = "impersonation.own_keys";

/// What `x-api-impersonate-user` may ask for.
#[derive(Clone, Debug)]
pub struct ImpersonationOptions {
    /// What is allowed to those whom the gateway knows; nothing unless a rule says so.
    pub rules: Vec<ImpersonationRule>,
    /// Whether the backend decides for keys of its own that it is shown as they came.
    pub backend_decides: bool,
}

/// These users may act as those.
#[derive(Clone, Debug)]
pub struct ImpersonationRule {
    /// Who calls.
    pub users: Vec<Glob>,
    /// Whom the backend shall take them for.
    pub act_as: Vec<Glob>,
}

impl Reader<'_> {
    pub(super) fn impersonation(&mut self) -> Option<ImpersonationOptions> {
        let mut rules = Vec::new();
        for (index, node) in self.list(RULES).into_iter().enumerate() {
            let entry = Entry::new(format!("{RULES}[{index}]"), node, self.problems);
            rules.extend(entry.and_then(impersonation_rule));
        }
        let backend_decides = match self.text(OWN_KEYS)?.as_str() {
            "backend" => true,
            "deny" => false,
            other => return self.choice(OWN_KEYS, other),
        };
        Some(ImpersonationOptions { rules, backend_decides })
    }
}

fn impersonation_rule(mut entry: Entry<'_>) -> Option<ImpersonationRule> {
    let users = globs(&mut entry, "users");
    let act_as = globs(&mut entry, "act_as");
    for (key, given) in [("users", &users), ("act_as", &act_as)] {
        if given.is_none() {
            entry.problem(key, "is missing; \"*\" stands for everybody");
        }
    }
    let complete = entry.finish();
    let rule = ImpersonationRule { users: users?, act_as: act_as? };
    complete.then_some(rule)
}

fn globs(entry: &mut Entry<'_>, key: &'static str) -> Option<Vec<Glob>> {
    entry.texts(key).map(|texts| texts.into_iter().map(Glob::new).collect())
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Problem, Sources, load};

    fn loaded(more: &[(&str, &str)]) -> Result<Config, String> {
        let required = [
            ("API_AUTH_SALT", "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="),
            ("TIMBR_GATEWAY_UPSTREAM_URL", "http://127.0.0.1:8000"),
        ];
        let environment = required.iter().chain(more).map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let lines =
            |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        load(&Sources { environment, ..Sources::default() }).map(|(config, _)| config).map_err(lines)
    }

    #[test]
    fn rules_of_impersonation_are_read() {
        let rules = "[{users: [bi, 'svc-*'], act_as: '*@example.com'}]";
        let config = loaded(&[("TIMBR_GATEWAY_IMPERSONATION_RULES", rules)]).expect("valid");
        let rule = &config.impersonation.rules[0];
        assert_eq!(format!("{:?} {:?}", rule.users, rule.act_as), r#"["bi", "svc-*"] ["*@example.com"]"#);
        assert!(config.impersonation.backend_decides);
        for (rules, expected) in [
            ("[{users: bi}]", "impersonation.rules[0].act_as: is missing"),
            ("[{act_as: bi}]", "impersonation.rules[0].users: is missing"),
            ("[{users: [], act_as: a}]", "must not be empty"),
            ("[{users: a, act_as: b, as: c}]", "as: unknown key"),
            ("[bi]", "must be a group of keys"),
            ("bi", "must be a list"),
        ] {
            let error = loaded(&[("TIMBR_GATEWAY_IMPERSONATION_RULES", rules)]).expect_err(rules);
            assert!(error.contains(expected), "{rules}: {error}");
        }
        let error = loaded(&[("TIMBR_GATEWAY_IMPERSONATION_OWN_KEYS", "yes")]).expect_err("no word");
        assert!(error.contains("must be one of backend, deny"), "{error}");
    }
}
