//! The ontology that a request names: in its path, or in the user name of `Authorization: Basic`. Bodies are not read.

use std::borrow::Cow;

use crate::auth::ClientCredential;
use crate::base::percent;
use crate::gateway::rejection::Rejection;
use crate::gateway::screen::Screened;

/// The headers with which clients select an ontology.
const ONTOLOGY_HEADERS: [&[u8]; 2] = [b"x-ontology", b"ontology"];

/// The ontology of a request for rules; `None` if it names none.
///
/// SECURITY: a request that names two different ones is rejected: the backend might use the one that no rule was
/// applied to. A header alone names none for the rules, because backends ignore it for most paths.
pub fn requested_ontology(screened: &Screened) -> Result<Option<Cow<'_, str>>, Rejection> {
    let in_user_name = ontology_in_user_name(screened.credential());
    let named = match (in_user_name, ontology_in_path(screened.path())) {
        (Some(one), Some(other)) if *one != *other => return Err(Rejection::OntologyAmbiguous),
        (Some(one), _) => Some(Cow::Borrowed(one)),
        (None, in_path) => in_path,
    };
    match &named {
        Some(named) if ontologies_in_headers(screened).any(|value| value != named.as_bytes()) => {
            Err(Rejection::OntologyAmbiguous)
        }
        _ => Ok(named),
    }
}

/// The ontology in the user name of `Authorization: Basic`.
pub fn ontology_in_user_name(credential: &ClientCredential) -> Option<&str> {
    match credential {
        ClientCredential::Basic(basic) => basic.ontology(),
        ClientCredential::Password(basic) => basic.ontology(),
        _ => None,
    }
}

/// What the head of a request says about its ontology, for a comparison with its body.
pub struct HeadOntology {
    /// The one that it names for rules.
    pub named: Option<String>,
    /// Those that headers select.
    in_headers: Vec<Box<[u8]>>,
}

impl HeadOntology {
    /// `named` is the result of [`requested_ontology`].
    pub fn new(screened: &Screened, named: Option<Cow<'_, str>>) -> HeadOntology {
        let in_headers = ontologies_in_headers(screened).map(Box::from).collect();
        HeadOntology { named: named.map(Cow::into_owned), in_headers }
    }

    /// Whether the body names a different one.
    pub fn differs_from(&self, in_body: Option<&str>) -> bool {
        in_body.is_some_and(|name| {
            self.named.as_ref().is_some_and(|named| named != name)
                || self.in_headers.iter().any(|value| **value != *name.as_bytes())
        })
    }
}

fn ontologies_in_headers(screened: &Screened) -> impl Iterator<Item = &[u8]> {
    let headers = screened.headers().iter().filter(|header| ONTOLOGY_HEADERS.contains(&header.text()));
    headers.map(|header| header.value)
}

/// The ontology that a path of the API names. `route` has already rejected ambiguous paths.
pub fn ontology_in_path(path: &str) -> Option<Cow<'_, str>> {
    let mut segments = path.strip_prefix('/')?.split('/');
    let segment = match (segments.next()?, segments.next()?) {
        ("timbr-server", "ontology") => segments.next()?,
        ("timbr", "openapi") if segments.next() == Some("ontology") => segments.next()?,
        ("timbr", "api") => match segments.next()? {
            "q" | "get_ontology" | "get_config" | "clear_cache" => segments.next()?,
            _ => return None,
        },
        _ => return None,
    };
    percent::decode(segment).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_ontologies() {
        for (path, expected) in [
            ("/timbr/openapi/ontology/sales/query", Some("sales")),
            ("/timbr/api/q/sales/concept/customer", Some("sales")),
            ("/timbr/api/get_ontology/my%20sales", Some("my sales")),
            ("/timbr/api/get_config/s%C3%A9", Some("sé")),
            ("/timbr/api/clear_cache/sales/", Some("sales")),
            ("/timbr/api/clear_cache/%ff", None),
            ("/timbr/api/clear_cache/", None),
            ("/timbr/api/query/", None),
            ("/timbr/api/get_ontologies/", None),
            ("/timbr/openapi/get-async-results/x", None),
            ("/timbr-server/ontology/sales", Some("sales")),
            ("/timbr-server/ontology/", None),
            ("/timbr-server/", None),
            ("/other/openapi/ontology/sales", None),
        ] {
            assert_eq!(ontology_in_path(path).as_deref(), expected, "{path}");
        }
    }
}
