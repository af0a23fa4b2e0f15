//! Checks the routes that need no credential (`credentials: [none]`), and which paths they never serve.

use crate::config::routes::RouteProfile;
use crate::config::sources::Problem;

/// Paths for which Timbr requires a credential.
const CREDENTIAL_PATHS: [&str; 17] = [
    "/timbr/api/get_token/",
    "/timbr/api/get_ontologies/",
    "/timbr/api/get_ontology/",
    "/timbr/api/create_ontology/",
    "/timbr/api/get_config/",
    "/timbr/api/clear_cache/",
    "/timbr/api/query/",
    "/timbr/api/q/",
    "/timbr/api/kb/",
    "/timbr/api/llm_prompts/",
    "/timbr/api/fetch_conversation_history/",
    "/timbr/api/mcp/",
    "/timbr/openapi/",
    "/timbr-server/",
    "/hive2/",
    "/cliservice/",
    "/mdx/",
];

/// Whether Timbr requires a credential for a path, in any letter case.
pub fn requires_credential(path: &str) -> bool {
    CREDENTIAL_PATHS.iter().any(|prefix| {
        let (path, prefix) = (path.as_bytes(), prefix.as_bytes());
        let start = path.get(..prefix.len()).unwrap_or(path);
        start.eq_ignore_ascii_case(prefix) || path.eq_ignore_ascii_case(&prefix[..prefix.len() - 1])
    })
}

/// SECURITY: such a route must not take requests for which Timbr requires a credential away from a stricter route. A
/// backend may compare paths without regard to case.
pub fn check(profiles: &[RouteProfile], problems: &mut Vec<Problem>) {
    let open = profiles.iter().filter(|profile| profile.accepts.none);
    for (profile, prefix) in open.flat_map(|profile| profile.prefixes.iter().map(move |prefix| (profile, prefix))) {
        let lower = prefix.to_ascii_lowercase();
        let covered = CREDENTIAL_PATHS.iter().find(|path| lower.starts_with(**path));
        let same_case = profiles
            .iter()
            .filter(|other| !other.accepts.none)
            .flat_map(|other| &other.prefixes)
            .find(|other| other.eq_ignore_ascii_case(prefix));
        if let Some(path) = covered.copied().or(same_case.map(String::as_str)) {
            let path = path.trim_end_matches('/');
            let message = format!(
                "the route {} accepts requests without a credential, so it must not cover {path}",
                profile.name
            );
            problems.push(Problem::new("routes", message));
        }
    }
}
