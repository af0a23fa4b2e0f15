//! Who may act as whom, and who may ask for what.

use http::Method;

use crate::base::glob::Glob;
use crate::config::choices::{AuthorizationMode, OwnKeys};
use crate::config::entry::ListEntry;
use crate::config::file::Node;
use crate::config::options::{AUTHORIZATION, IMPERSONATION, Key};
use crate::config::reader::Reader;
use crate::config::{RouteProfile, routes};

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

/// Who may ask for what.
#[derive(Clone, Debug)]
pub struct AuthorizationOptions {
    /// Whether what no rule allows is refused, or only told.
    pub enforce: bool,
    /// What is allowed.
    pub rules: Vec<AuthorizationRule>,
}

/// These may ask for that. What is `None` is not looked at.
#[derive(Clone, Debug)]
pub struct AuthorizationRule {
    /// Users, by name.
    pub users: Vec<Glob>,
    /// Whether those are meant, too, whom only the backend knows.
    pub unknown_users: bool,
    /// Names of routes.
    pub routes: Option<Vec<String>>,
    /// Methods.
    pub methods: Option<Vec<Method>>,
    /// Ontologies that a path names.
    pub ontologies: Option<Vec<Glob>>,
}

impl Reader<'_> {
    /// `Some(None)`: every authenticated request is allowed.
    pub(super) fn authorization(&mut self, routes: &[RouteProfile]) -> Option<Option<AuthorizationOptions>> {
        let rules = self.rules(&AUTHORIZATION.rules, |entry| authorization_rule(entry, routes));
        let key = AUTHORIZATION.rules.key;
        match (self.get(&AUTHORIZATION.mode)?, self.is_set(&AUTHORIZATION.rules)) {
            (AuthorizationMode::Off, false) => Some(None),
            (AuthorizationMode::Off, true) => self
                .missing(key, "has no effect with authorization.mode=off; did you mean shadow or enforce?"),
            (_, false) => self.missing(
                key,
                "is required with authorization.mode=shadow or enforce: nothing is allowed yet",
            ),
            (mode, true) => {
                Some(Some(AuthorizationOptions { enforce: mode == AuthorizationMode::Enforce, rules }))
            }
        }
    }

    pub(super) fn impersonation(&mut self) -> Option<ImpersonationOptions> {
        let rules = self.rules(&IMPERSONATION.rules, impersonation_rule);
        let backend_decides = self.get(&IMPERSONATION.own_keys)? == OwnKeys::Backend;
        Some(ImpersonationOptions { rules, backend_decides })
    }

    fn rules<T>(&mut self, key: &Key<Vec<Node>>, read: impl Fn(ListEntry<'_>) -> Option<T>) -> Vec<T> {
        let nodes = self.get(key).unwrap_or_default().into_iter().enumerate();
        let entries = nodes.filter_map(|(index, node)| {
            ListEntry::new(format!("{key}[{index}]"), node, self.problems).and_then(&read)
        });
        entries.collect()
    }
}

fn authorization_rule(mut entry: ListEntry<'_>, profiles: &[RouteProfile]) -> Option<AuthorizationRule> {
    let users = globs(&mut entry, "users");
    let unknown_users = entry.flag("unknown_users");
    if users.is_none() && !unknown_users {
        entry.problem("users", "is missing; \"*\" stands for everybody whom the gateway knows by name");
    }
    let routes = entry.texts("routes");
    for name in routes.iter().flatten() {
        if !profiles.iter().any(|profile| profile.name == *name) {
            entry.problem("routes", format!("{name:?} is no route"));
        }
    }
    let methods = entry.texts("methods").map(|names| {
        let mut methods = Vec::new();
        for name in names {
            match routes::method(&name) {
                Some(method) => methods.push(method),
                None => entry.problem("methods", format!("{name:?} is not valid here")),
            }
        }
        methods
    });
    let ontologies = globs(&mut entry, "ontologies");
    let users = users.unwrap_or_default();
    entry.finish().then_some(AuthorizationRule { users, unknown_users, routes, methods, ontologies })
}

fn impersonation_rule(mut entry: ListEntry<'_>) -> Option<ImpersonationRule> {
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

fn globs(entry: &mut ListEntry<'_>, key: &'static str) -> Option<Vec<Glob>> {
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
    fn rules_of_authorization_are_read() {
        let load = |mode, rules| {
            loaded(&[
                ("TIMBR_GATEWAY_AUTHORIZATION_MODE", mode),
                ("TIMBR_GATEWAY_AUTHORIZATION_RULES", rules),
            ])
        };
        let rules =
            "[{users: '*', methods: GET}, {unknown_users: true, routes: [openapi], ontologies: 'sales*'}]";
        let options = load("shadow", rules).expect("valid").authorization.expect("on");
        assert!(!options.enforce && options.rules[1].unknown_users && options.rules[0].routes.is_none());
        for (mode, rules, expected) in [
            ("off", rules, "has no use with"),
            ("enforce", "", "is required with"),
            ("maybe", rules, "must be one of"),
            ("enforce", "[{routes: api}]", "users: is missing"),
            ("enforce", "[{users: a, routes: [api, other]}]", "\"other\" is no route"),
            ("enforce", "[{users: a, methods: [FETCH]}]", "\"FETCH\" is not valid"),
            ("enforce", "[{users: a, unknown_users: 'yes'}]", "must be true or false"),
            ("enforce", "[{users: a, ontology: sales}]", "unknown key"),
        ] {
            let error = load(mode, rules).expect_err(rules);
            assert!(error.contains(expected), "{mode} {rules}: {error}");
        }
        assert!(loaded(&[]).expect("valid").authorization.is_none());
    }

    #[test]
    fn rules_of_impersonation_are_read() {
        let rules = "[{users: [bi, 'svc-*'], act_as: '*@example.com'}]";
        let trust = ("TIMBR_GATEWAY_AUTH_TRUST_SALT_HOLDER", "true");
        let alone =
            loaded(&[("TIMBR_GATEWAY_IMPERSONATION_RULES", rules)]).expect_err("nobody checks passwords");
        assert!(alone.contains("auth.trust_salt_holder"), "{alone}");
        let config = loaded(&[("TIMBR_GATEWAY_IMPERSONATION_RULES", rules), trust]).expect("valid");
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
