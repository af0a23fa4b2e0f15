//! Reads the rate limits of `limits.rules`. Applies none.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::base::glob::Glob;
use crate::base::rate::Rate;
use crate::config::list_entry::ListEntry;
use crate::config::options::{LIMIT_RULES, LIMITS};
use crate::config::reader::Reader;
use crate::config::rules::{globs, route_names};
use crate::config::{RouteProfile, routes};

/// One rule of `limits.rules`. A condition that is `None` matches every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitRule {
    /// The name in logs and metrics.
    pub name: Arc<str>,
    /// Patterns of user names in lower case.
    pub users: Option<Vec<Glob>>,
    /// Patterns of the callers' groups; with `users`, one of both must match.
    pub groups: Vec<Glob>,
    /// Networks of the clients.
    pub addresses: Option<Vec<IpNet>>,
    /// Names of route profiles.
    pub routes: Option<Vec<String>>,
    /// Patterns of the ontology that the request names; a request that names none does not match.
    pub ontologies: Option<Vec<Glob>>,
    /// Requests of each caller per second.
    pub rate: Option<Rate>,
    /// Concurrent requests of each caller.
    pub concurrent: Option<usize>,
    /// Whether requests above the limit are rejected; otherwise they are only counted and logged.
    pub is_enforced: bool,
}

/// Each request is checked against every rule.
const MAX_RULES: usize = 64;

impl Reader<'_> {
    /// Often empty.
    pub(super) fn limit_rules(&mut self, routes: &[RouteProfile]) -> Vec<LimitRule> {
        let rules = self.rules(&LIMIT_RULES.rules, |entry| limit_rule(entry, routes));
        let key = LIMIT_RULES.rules.key;
        if rules.len() > MAX_RULES {
            self.problem(key, format!("has {} rules; the maximum is {MAX_RULES}", rules.len()));
        }
        for (index, rule) in rules.iter().enumerate() {
            if rules[..index].iter().any(|other| other.name == rule.name) {
                self.problem(key, format!("has two rules with the name {}", rule.name));
            }
        }
        rules.into_iter().chain(self.unauthenticated_rule(routes)).collect()
    }

    /// The rate limit for routes without credentials, whose callers are client addresses.
    fn unauthenticated_rule(&mut self, routes: &[RouteProfile]) -> Option<LimitRule> {
        let open: Vec<_> = routes.iter().filter(|route| route.accepts.none).map(|route| route.name.clone()).collect();
        let per_second = self.get(&LIMITS.unauthenticated_rate)?;
        let rate = Rate::new(per_second.into(), per_second.saturating_mul(10))?;
        (!open.is_empty()).then(|| LimitRule {
            name: LIMITS.unauthenticated_rate.key.into(),
            users: None,
            groups: Vec::new(),
            addresses: None,
            routes: Some(open),
            ontologies: None,
            rate: Some(rate),
            concurrent: None,
            is_enforced: true,
        })
    }
}

fn limit_rule(mut entry: ListEntry<'_>, profiles: &[RouteProfile]) -> Option<LimitRule> {
    let name = entry.required("name");
    if name.as_ref().is_some_and(|name| name.len() > 64 || !routes::is_name(name)) {
        entry.problem("name", "must be a word of a-z, 0-9, `-` and `_`, of at most 64 characters");
    }
    let users = globs(&mut entry, "users").map(|all| all.iter().map(Glob::to_lower_case).collect());
    let groups = globs(&mut entry, "groups").unwrap_or_default();
    let addresses = entry.parsed_texts("addresses", network);
    let routes = route_names(&mut entry, profiles);
    let ontologies = globs(&mut entry, "ontologies");
    let per_second = entry.number::<f64>("requests_per_second");
    let burst = entry.number::<u32>("burst");
    let rate = rate(&mut entry, per_second, burst);
    let concurrent = entry.number::<usize>("concurrent");
    if concurrent == Some(0) {
        entry
            .problem("concurrent", "must be at least 1; to stop all requests of a user, use `timbr-gateway stop user`");
    }
    if per_second.is_none() && concurrent.is_none() {
        entry.problem("requests_per_second", "is missing, and `concurrent` too: the rule would limit nothing");
    }
    let is_enforced = is_enforced(&mut entry);
    let complete = entry.finish();
    let name = name?.into();
    let rule = LimitRule { name, users, groups, addresses, routes, ontologies, rate, concurrent, is_enforced };
    complete.then_some(rule)
}

fn rate(entry: &mut ListEntry<'_>, per_second: Option<f64>, burst: Option<u32>) -> Option<Rate> {
    let Some(per_second) = per_second else {
        if burst.is_some() {
            entry.problem("burst", "has no effect without requests_per_second");
        }
        return None;
    };
    if burst == Some(0) {
        entry.problem("burst", "must be at least 1; to stop all requests of a user, use `timbr-gateway stop user`");
        return None;
    }
    // One second's worth, so that a client may send its requests together.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
    let rate = Rate::new(per_second, burst.unwrap_or(per_second.ceil().max(1.0) as u32));
    if rate.is_none() {
        entry.problem(
            "requests_per_second",
            "must be a number above 0, such as 0.5 or 20, and at most ten million, and a full burst must drain within a day",
        );
    }
    rate
}

fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| format!("{text:?} is neither a network nor an address"))
}

/// SECURITY: a rule without `mode` is enforced.
fn is_enforced(entry: &mut ListEntry<'_>) -> bool {
    let mode = entry.text("mode");
    if mode.as_deref().is_some_and(|mode| !["enforce", "shadow"].contains(&mode)) {
        entry.problem("mode", "must be enforce or shadow");
    }
    mode.as_deref() != Some("shadow")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;

    #[test]
    fn limit_rules() {
        let with = |rules| load("", &[("LIMITS_RULES", rules)]);
        let rules = "[{name: bots, users: 'bot-*', requests_per_second: 0.5, burst: 4, mode: shadow}, \
                     {name: office, addresses: [10.0.0.0/8, '2001:db8::1'], concurrent: 2, routes: api, groups: staff}]";
        let rules = with(rules).expect("valid").limit_rules;
        assert_eq!((rules[0].rate, rules[0].is_enforced), (Rate::new(0.5, 4), false));
        assert_eq!((rules[1].concurrent, rules[1].is_enforced), (Some(2), true));
        assert_eq!((rules[1].groups.len(), rules[1].users.is_none()), (1, true));
        assert_eq!(rules[1].addresses.as_ref().map(Vec::len), Some(2));
        for (rules, expected) in [
            ("[{requests_per_second: 1}]", "limits.rules[0].name: is missing"),
            ("[{name: A, requests_per_second: 1}]", "must be a word of a-z"),
            ("[{name: a}]", "the rule would limit nothing"),
            ("[{name: a, requests_per_second: 0}]", "must be a number above 0"),
            ("[{name: a, requests_per_second: fast}]", "must be a number"),
            ("[{name: a, burst: 3, concurrent: 1}]", "has no effect without requests_per_second"),
            ("[{name: a, concurrent: 0}]", "concurrent: must be at least 1; to stop all requests of a user, use"),
            ("[{name: a, requests_per_second: 1, burst: 0}]", "burst: must be at least 1"),
            ("[{name: a, requests_per_second: 1e9}]", "at most ten million"),
            ("[{name: a, concurrent: 1.5}]", "must be a whole number"),
            ("[{name: a, concurrent: 1, mode: log}]", "must be enforce or shadow"),
            ("[{name: a, concurrent: 1, routes: other}]", "\"other\" is not a route"),
            ("[{name: a, concurrent: 1, addresses: here}]", "is neither a network nor an address"),
            ("[{name: a, concurrent: 1}, {name: a, concurrent: 2}]", "two rules with the name a"),
            ("[{name: a, concurrent: 1, rate: 2}]", "unknown key"),
        ] {
            let error = with(rules).expect_err(rules);
            assert!(error.contains(expected), "{rules}: {error}");
        }
    }
}
