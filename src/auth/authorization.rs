//! Who may ask for what.

use http::Method;

use crate::auth::Identity;
use crate::base::user_name::UserName;
use crate::config::AuthorizationOptions;
use crate::config::rules::AuthorizationRule;

/// The rules of the operator.
pub struct Authorization(AuthorizationOptions);

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// The name of its route.
    pub route: &'a str,
    /// Its method.
    pub method: &'a Method,
    /// The ontology that its path names.
    pub ontology: Option<&'a str>,
}

impl Authorization {
    /// By these options.
    pub fn new(options: AuthorizationOptions) -> Authorization {
        Authorization(options)
    }

    /// Whether what is not allowed is refused.
    pub fn is_enforced(&self) -> bool {
        self.0.enforce
    }

    /// Whether a rule allows it. Who acts as another user may do what that one may.
    ///
    /// SECURITY: a rule about ontologies allows nothing of which the path does not say which ontology it is about: a body
    /// is not read here.
    pub fn allows(&self, identity: &Identity, action: Action<'_>) -> bool {
        let user = identity.impersonated_user().or(identity.user());
        self.0.rules.iter().any(|rule| is_for_user(rule, user) && is_for_action(rule, action))
    }
}

fn is_for_user(rule: &AuthorizationRule, user: Option<&UserName>) -> bool {
    match user {
        None => rule.unknown_users,
        Some(user) => rule.users.iter().any(|glob| glob.matches(user.as_str())),
    }
}

fn is_for_action(rule: &AuthorizationRule, action: Action<'_>) -> bool {
    rule.routes.as_ref().is_none_or(|routes| routes.iter().any(|route| route == action.route))
        && rule.methods.as_ref().is_none_or(|methods| methods.contains(action.method))
        && rule.ontologies.as_ref().is_none_or(|ontologies| {
            action.ontology.is_some_and(|ontology| ontologies.iter().any(|glob| glob.matches(ontology)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::glob::Glob;
    use crate::store::TokenId;

    fn identity(user: Option<&str>) -> Identity {
        let user = user.map(|user| UserName::parse(user.as_bytes()).expect("valid"));
        Identity::from_key(user, None, TokenId::from_token(b"key").fingerprint())
    }

    #[test]
    fn only_what_a_rule_allows() {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(*text)).collect::<Vec<_>>();
        let any = |users: &[&str]| AuthorizationRule {
            users: globs(users),
            unknown_users: false,
            routes: None,
            methods: None,
            ontologies: None,
        };
        let rules = vec![
            any(&["root"]),
            AuthorizationRule { methods: Some(vec![Method::GET]), ..any(&["reader-*"]) },
            AuthorizationRule {
                routes: Some(vec!["openapi".to_owned()]),
                ontologies: Some(globs(&["sales*"])),
                unknown_users: true,
                ..any(&["alice"])
            },
        ];
        let authorization = Authorization::new(AuthorizationOptions { enforce: true, rules });
        for (user, route, method, ontology, expected) in [
            (Some("root"), "api", Method::DELETE, None, true),
            (Some("reader-1"), "api", Method::GET, Some("hr"), true),
            (Some("reader-1"), "api", Method::POST, Some("hr"), false),
            (Some("alice"), "openapi", Method::POST, Some("sales_eu"), true),
            (Some("alice"), "openapi", Method::POST, Some("hr"), false),
            (Some("alice"), "openapi", Method::POST, None, false),
            (Some("alice"), "api", Method::GET, Some("sales"), false),
            (None, "openapi", Method::GET, Some("sales"), true),
            (None, "api", Method::GET, None, false),
            (Some("eve"), "openapi", Method::POST, Some("sales"), false),
        ] {
            let action = Action { route, method: &method, ontology };
            assert_eq!(authorization.allows(&identity(user), action), expected, "{user:?} {action:?}");
        }
        let acting = identity(Some("root")).impersonating(UserName::parse(b"eve").expect("valid"));
        let action = Action { route: "api", method: &Method::GET, ontology: None };
        assert!(!authorization.allows(&acting, action), "as whom it acts counts");
    }
}
