//! Authorization rules: which user may use which route, method, ontology, class of statements and MCP tool. Knows only
//! proven identities.

use http::Method;

use crate::auth::Identity;
use crate::base::glob::Glob;
use crate::config::AuthorizationOptions;
use crate::config::rules::AuthorizationRule;
use crate::http::statement::{McpCall, StatementClass};

/// The configured authorization rules.
pub struct Authorization(pub(super) AuthorizationOptions);

/// The action of a request that the rules apply to.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// The name of the route.
    pub route: &'a str,
    /// The request method.
    pub method: &'a Method,
    /// The ontology that the request names, if it names one.
    pub ontology: Option<&'a str>,
    /// The class of the statement in the body; `None` if it has none, or was not read.
    pub statement: Option<StatementClass>,
    /// What an MCP request does; `None` for other requests, or if it was not understood.
    pub mcp: Option<&'a McpCall<'a>>,
}

impl Authorization {
    /// Returns whether requests that no rule allows are rejected; otherwise they are only logged.
    pub fn is_enforced(&self) -> bool {
        self.0.enforce
    }

    /// Returns whether a rule depends on what a body contains.
    pub fn depends_on_statements(&self) -> bool {
        self.0.rules.iter().any(|rule| rule.statements.is_some() || rule.ontologies.is_some() || rule.tools.is_some())
    }

    /// Returns whether a rule allows the action. For an impersonated user, that user's rules apply.
    pub fn allows(&self, identity: &Identity, action: Action<'_>) -> bool {
        self.0.rules.iter().any(|rule| is_for_caller(rule, identity) && is_for_action(rule, action))
    }
}

/// SECURITY: the groups are those of the caller, so they grant nothing to a user whom the caller acts as.
fn is_for_caller(rule: &AuthorizationRule, identity: &Identity) -> bool {
    match (identity.impersonated_user(), identity.user()) {
        (Some(user), _) => Glob::any(&rule.users, user.as_str()),
        (None, Some(_)) => identity.is_one_of(&rule.users, &rule.groups),
        (None, None) => rule.unknown_users,
    }
}

fn is_for_action(rule: &AuthorizationRule, action: Action<'_>) -> bool {
    rule.routes.as_ref().is_none_or(|routes| routes.iter().any(|route| route == action.route))
        && rule.methods.as_ref().is_none_or(|methods| methods.contains(action.method))
        && rule.ontologies.as_ref().is_none_or(|all| action.ontology.is_some_and(|ontology| Glob::any(all, ontology)))
        && rule.statements.as_ref().is_none_or(|classes| action.statement.is_some_and(|class| classes.contains(&class)))
        && rule.tools.as_ref().is_none_or(|tools| {
            action.mcp.is_some_and(|call| match call {
                McpCall::Tool(tool) => Glob::any(tools, tool),
                McpCall::NoTool => true,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::jwt::JwtCaller;
    use crate::base::groups::Groups;
    use crate::base::user_name::UserName;
    use crate::store::TokenId;

    #[test]
    fn an_action_needs_a_matching_rule() {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(*text)).collect::<Vec<_>>();
        let any = |users: &[&str]| AuthorizationRule {
            users: globs(users),
            groups: Vec::new(),
            unknown_users: false,
            routes: None,
            methods: None,
            ontologies: None,
            statements: None,
            tools: None,
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
        let authorization = Authorization(AuthorizationOptions { enforce: true, rules });
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
            let action = Action { route, method: &method, ontology, statement: None, mcp: None };
            assert_eq!(authorization.allows(&Identity::of_user(user), action), expected, "{user:?} {action:?}");
        }
        let rules = vec![AuthorizationRule { tools: Some(globs(&["query*"])), ..any(&["alice"]) }];
        let by_tool = Authorization(AuthorizationOptions { enforce: true, rules });
        assert!(by_tool.depends_on_statements());
        for (mcp, expected) in [
            (Some(McpCall::Tool("query_sales".into())), true),
            (Some(McpCall::Tool("delete".into())), false),
            (Some(McpCall::NoTool), true),
            (None, false),
        ] {
            let mcp = mcp.as_ref();
            let action = Action { route: "mcp", method: &Method::POST, ontology: None, statement: None, mcp };
            assert_eq!(by_tool.allows(&Identity::of_user(Some("alice")), action), expected, "{action:?}");
        }
        let rules = vec![AuthorizationRule { groups: globs(&["analysts"]), ..any(&[]) }];
        let by_group = Authorization(AuthorizationOptions { enforce: true, rules });
        let action = Action { route: "api", method: &Method::GET, ontology: None, statement: None, mcp: None };
        let member = |group: &str| {
            let user = UserName::parse(b"alice").expect("valid");
            let caller = JwtCaller { user, groups: Groups::new(vec![group.into()]), expires_at: 0, issuer: 0 };
            Identity::from_jwt(caller, TokenId::from_token(b"jwt"), None)
        };
        assert!(by_group.allows(&member("analysts"), action) && !by_group.allows(&member("others"), action));
        let acting = member("analysts").impersonating(UserName::parse(b"eve").expect("valid"));
        assert!(!by_group.allows(&acting, action), "the groups of the caller do not count for another user");
        let acting = Identity::of_user(Some("root")).impersonating(UserName::parse(b"eve").expect("valid"));
        let action = Action { route: "api", method: &Method::GET, ontology: None, statement: None, mcp: None };
        assert!(!authorization.allows(&acting, action), "the rules of the impersonated user apply");
    }
}
