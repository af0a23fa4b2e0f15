//! Reads the rules of impersonation and authorization. Applies none.

use http::Method;
use serde_json::Value;

use crate::base::glob::Glob;
use crate::config::choices::{AuthorizationMode, OwnKeys};
use crate::config::list_entry::ListEntry;
use crate::config::options::{AUTHORIZATION, IMPERSONATION, Key};
use crate::config::reader::Reader;
use crate::config::{RouteProfile, routes};
use crate::http::statement::StatementClass;

/// Rules for `x-api-impersonate-user`.
#[derive(Clone, Debug)]
pub struct ImpersonationOptions {
    /// Allowed impersonations by users whom the gateway knows; nothing else is allowed.
    pub rules: Vec<ImpersonationRule>,
    /// Whether the backend decides about impersonation with the client's own key (`impersonation.own_keys`).
    pub backend_decides: bool,
}

/// One rule of `impersonation.rules`.
#[derive(Clone, Debug)]
pub struct ImpersonationRule {
    /// Patterns of the callers' names.
    pub users: Vec<Glob>,
    /// Patterns of the callers' groups; one of both must match.
    pub groups: Vec<Glob>,
    /// Patterns of the names that they may use.
    pub act_as: Vec<Glob>,
}

/// Rules for all requests.
#[derive(Clone, Debug)]
pub struct AuthorizationOptions {
    /// Whether requests that no rule allows are rejected; otherwise they are only logged.
    pub enforce: bool,
    /// A request is allowed if one of them matches.
    pub rules: Vec<AuthorizationRule>,
}

/// One rule of `authorization.rules`. A field that is `None` matches every request.
#[derive(Clone, Debug)]
pub struct AuthorizationRule {
    /// Patterns of user names.
    pub users: Vec<Glob>,
    /// Patterns of groups; the user or one of the user's groups must match.
    pub groups: Vec<Glob>,
    /// Whether callers whom only the backend knows match, too.
    pub unknown_users: bool,
    /// Names of route profiles.
    pub routes: Option<Vec<String>>,
    /// HTTP methods.
    pub methods: Option<Vec<Method>>,
    /// Patterns of the ontology that the request names; a request that names none does not match.
    pub ontologies: Option<Vec<Glob>>,
    /// Classes of the statement in the body; a body without one does not match.
    pub statements: Option<Vec<StatementClass>>,
    /// Patterns of MCP tools; a request that is no MCP request does not match.
    pub tools: Option<Vec<Glob>>,
}

impl Reader<'_> {
    /// `Some(None)`: every authenticated request is allowed.
    pub(super) fn authorization(&mut self, routes: &[RouteProfile]) -> Option<Option<AuthorizationOptions>> {
        let rules = self.rules(&AUTHORIZATION.rules, |entry| authorization_rule(entry, routes));
        let key = AUTHORIZATION.rules.key;
        match (self.get(&AUTHORIZATION.mode)?, self.is_set(&AUTHORIZATION.rules)) {
            (AuthorizationMode::Off, false) => Some(None),
            (AuthorizationMode::Off, true) => {
                self.missing(key, "has no effect with authorization.mode=off; did you mean shadow or enforce?")
            }
            (_, false) => {
                self.missing(key, "is required with authorization.mode=shadow or enforce: nothing is allowed yet")
            }
            (mode, true) => Some(Some(AuthorizationOptions { enforce: mode == AuthorizationMode::Enforce, rules })),
        }
    }

    pub(super) fn impersonation(&mut self) -> Option<ImpersonationOptions> {
        let rules = self.rules(&IMPERSONATION.rules, impersonation_rule);
        let backend_decides = self.get(&IMPERSONATION.own_keys)? == OwnKeys::Backend;
        Some(ImpersonationOptions { rules, backend_decides })
    }

    pub(super) fn rules<T>(&mut self, key: &Key<Vec<Value>>, read: impl Fn(ListEntry<'_>) -> Option<T>) -> Vec<T> {
        let nodes = self.get(key).unwrap_or_default().into_iter().enumerate();
        let entries = nodes
            .filter_map(|(index, node)| ListEntry::new(format!("{key}[{index}]"), node, self.problems).and_then(&read));
        entries.collect()
    }
}

fn authorization_rule(mut entry: ListEntry<'_>, profiles: &[RouteProfile]) -> Option<AuthorizationRule> {
    let users = globs(&mut entry, "users");
    let groups = globs(&mut entry, "groups");
    let unknown_users = entry.flag("unknown_users");
    if users.is_none() && groups.is_none() && !unknown_users {
        entry.problem("users", "is missing; \"*\" matches every user whom the gateway knows by name");
    }
    let routes = route_names(&mut entry, profiles);
    let methods = entry.parsed_texts("methods", routes::parse_method);
    let ontologies = globs(&mut entry, "ontologies");
    let statements = entry.parsed_texts("statements", |word| {
        let class = StatementClass::parse(word);
        class.ok_or_else(|| format!("{word:?} must be one of {}", StatementClass::WORDS.join(", ")))
    });
    let tools = globs(&mut entry, "tools");
    let (users, groups) = (users.unwrap_or_default(), groups.unwrap_or_default());
    entry.finish().then_some(AuthorizationRule {
        tools,
        users,
        groups,
        unknown_users,
        routes,
        methods,
        ontologies,
        statements,
    })
}

fn impersonation_rule(mut entry: ListEntry<'_>) -> Option<ImpersonationRule> {
    let users = globs(&mut entry, "users");
    let groups = globs(&mut entry, "groups");
    let act_as = globs(&mut entry, "act_as");
    for (key, is_missing) in [("users", users.is_none() && groups.is_none()), ("act_as", act_as.is_none())] {
        if is_missing {
            entry.problem(key, "is missing; \"*\" matches every user");
        }
    }
    let complete = entry.finish();
    let (users, groups) = (users.unwrap_or_default(), groups.unwrap_or_default());
    let rule = ImpersonationRule { users, groups, act_as: act_as? };
    complete.then_some(rule)
}

/// The names of existing routes under `routes`.
pub(super) fn route_names(entry: &mut ListEntry<'_>, profiles: &[RouteProfile]) -> Option<Vec<String>> {
    let names = entry.texts("routes")?;
    for name in &names {
        if !profiles.iter().any(|profile| profile.name == *name) {
            entry.problem("routes", format!("{name:?} is not a route"));
        }
    }
    Some(names)
}

/// Patterns under `key`.
pub(super) fn globs(entry: &mut ListEntry<'_>, key: &'static str) -> Option<Vec<Glob>> {
    entry.texts(key).map(|texts| texts.into_iter().map(Glob::new).collect())
}

#[cfg(test)]
mod tests {
    use crate::config::testing::load;

    #[test]
    fn authorization_rules() {
        let with = |mode, rules| load("", &[("AUTHORIZATION_MODE", mode), ("AUTHORIZATION_RULES", rules)]);
        let rules = "[{users: '*', methods: GET}, {unknown_users: true, routes: [openapi], ontologies: 'sales*'}]";
        let options = with("shadow", rules).expect("valid").authorization.expect("on");
        assert!(!options.enforce && options.rules[1].unknown_users && options.rules[0].routes.is_none());
        for (mode, rules, expected) in [
            ("off", rules, "has no effect with"),
            ("enforce", "", "is required with"),
            ("maybe", rules, "must be one of"),
            ("enforce", "[{routes: api}]", "users: is missing"),
            ("enforce", "[{users: a, routes: [api, other]}]", "\"other\" is not a route"),
            ("enforce", "[{users: a, methods: [FETCH]}]", "\"FETCH\" is not a valid method"),
            ("enforce", "[{users: a, unknown_users: 'yes'}]", "must be true or false"),
            ("enforce", "[{users: a, ontology: sales}]", "unknown key"),
            ("enforce", "[{users: a, statements: select}]", "must be one of read, write, admin, show, unknown"),
        ] {
            let error = with(mode, rules).expect_err(rules);
            assert!(error.contains(expected), "{mode} {rules}: {error}");
        }
        assert!(load("", &[]).expect("valid").authorization.is_none());
    }

    #[test]
    fn impersonation_rules() {
        let rules = "[{users: [bi, 'svc-*'], act_as: '*@example.com'}]";
        let trust = ("AUTH_TRUST_SALT_HOLDER", "true");
        let untrusted = load("", &[("IMPERSONATION_RULES", rules)]).expect_err("no password is checked");
        assert!(untrusted.contains("auth.trust_salt_holder"), "{untrusted}");
        let config = load("", &[("IMPERSONATION_RULES", rules), trust]).expect("valid");
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
            let error = load("", &[("IMPERSONATION_RULES", rules)]).expect_err(rules);
            assert!(error.contains(expected), "{rules}: {error}");
        }
        let error = load("", &[("IMPERSONATION_OWN_KEYS", "yes")]).expect_err("no word");
        assert!(error.contains("must be one of backend, deny"), "{error}");
    }
}
