//! Reads which statement a request body holds: its class, its ontology and its fingerprint. It decides nothing.
//!
//! SECURITY: whatever is incomplete or ambiguous has the class `unknown`, and no rule that names a class allows it.

mod keyword;
mod sql;
mod thrift;
mod token_request;

use std::borrow::Cow;
use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

use crate::base::hex;
use crate::base::label_values::label_values;

pub use token_request::TokenRequest;

label_values! {
    /// What a statement does.
    StatementClass {
        /// Reads data.
        Read = "read",
        /// Changes data.
        Write = "write",
        /// Changes ontologies, rights or settings.
        Admin = "admin",
        /// Shows metadata; over Thrift also the calls that belong to a session or fetch results.
        Show = "show",
        /// Not understood.
        Unknown = "unknown",
    }
}

/// How a route carries statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementFormat {
    /// The body is the statement.
    Sql,
    /// JSON with `query` and `ontology_name`.
    Json,
    /// A Thrift call.
    Thrift,
    /// A JSON-RPC request of the Model Context Protocol.
    Mcp,
}

/// What is known of the statement in a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Its class.
    pub class: StatementClass,
    /// The ontology that the body names.
    pub ontology: Option<Cow<'a, str>>,
    /// What an MCP request does; `None` for other formats, or if it was not understood.
    pub mcp: Option<McpCall<'a>>,
    /// The statement as it was sent; `None` without one.
    pub text: Option<Cow<'a, str>>,
    /// The statement without its literals; empty without a statement, or if it is unknown.
    pub normalized: String,
}

/// What an MCP request does.
#[derive(Debug, PartialEq, Eq)]
pub enum McpCall<'a> {
    /// It calls this tool.
    Tool(Cow<'a, str>),
    /// It calls none: it opens a session, lists tools and the like.
    NoTool,
}

/// The first 8 bytes of the SHA-256 of a statement without its literals.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatementFingerprint([u8; 8]);

impl fmt::Display for StatementFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for StatementFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Deserialize)]
struct JsonQuery<'a> {
    #[serde(borrow)]
    query: Cow<'a, str>,
    #[serde(borrow)]
    ontology_name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct McpRequest<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<McpParameters<'a>>,
}

#[derive(Deserialize)]
struct McpParameters<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
}

/// The statement with which PyHive and pytimbr-sqla begin each session, without its literals.
///
/// SECURITY: as in `session_ontology`, Hive's default is no ontology: the session stays in the one that the rules know.
const USE_DEFAULT: [&str; 2] = ["USE `default` ", "USE DEFAULT "];

impl<'a> Statement<'a> {
    /// What is known of a body that is too large or incomplete: nothing.
    pub const UNKNOWN: Statement<'static> =
        Statement { class: StatementClass::Unknown, ontology: None, mcp: None, text: None, normalized: String::new() };

    /// Reads a body. `body` must be complete: the rest of a longer one could change its meaning.
    pub fn read(format: StatementFormat, body: &'a [u8]) -> Statement<'a> {
        let statement = match format {
            StatementFormat::Sql => std::str::from_utf8(body).ok().map(|text| Statement::from_sql(text.into(), None)),
            StatementFormat::Json => {
                read_object::<JsonQuery<'a>>(body).map(|json| Statement::from_sql(json.query, json.ontology_name))
            }
            StatementFormat::Thrift if thrift::is_session_call(body) => {
                let ontology = thrift::session_ontology(body).map(Cow::Borrowed);
                Some(Statement { class: StatementClass::Show, ontology, ..Statement::UNKNOWN })
            }
            StatementFormat::Thrift => thrift::statement(body).map(Statement::from_thrift),
            // Without a body it opens a stream or ends a session.
            StatementFormat::Mcp if body.is_empty() => {
                Some(Statement { mcp: Some(McpCall::NoTool), ..Statement::UNKNOWN })
            }
            StatementFormat::Mcp => read_object::<McpRequest<'a>>(body).map(Statement::from_mcp),
        };
        statement.unwrap_or(Statement::UNKNOWN)
    }

    /// Whether the body is a call that executes no statement.
    pub fn is_session_call(&self) -> bool {
        let is_of_thrift_session = self.class == StatementClass::Show && self.text.is_none();
        is_of_thrift_session || self.mcp == Some(McpCall::NoTool)
    }

    /// The hash of the statement without its literals; `None` without a statement, or if it is unknown.
    pub fn fingerprint(&self) -> Option<StatementFingerprint> {
        (!self.normalized.is_empty()).then(|| {
            let hash = digest(&SHA256, self.normalized.as_bytes());
            StatementFingerprint(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
        })
    }

    fn from_sql(text: Cow<'a, str>, ontology: Option<Cow<'a, str>>) -> Statement<'a> {
        let sql::Classified { class, normalized } = sql::classify(&text);
        Statement { class, ontology, mcp: None, text: Some(text), normalized }
    }

    fn from_thrift(text: &'a str) -> Statement<'a> {
        let statement = Statement::from_sql(text.into(), None);
        let class = if USE_DEFAULT.contains(&&*statement.normalized) { StatementClass::Show } else { statement.class };
        Statement { class, ..statement }
    }

    fn from_mcp(request: McpRequest<'a>) -> Statement<'a> {
        let mcp = match &*request.method {
            "tools/call" => request.params.and_then(|parameters| parameters.name).map(McpCall::Tool),
            _ => Some(McpCall::NoTool),
        };
        Statement { mcp, ..Statement::UNKNOWN }
    }
}

/// Reads a JSON object; a repeated key is an error.
///
/// SECURITY: serde also reads an object from an array of its values. A batch of JSON-RPC requests is an array, whose
/// elements the backend could execute one by one.
fn read_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    let is_object = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    serde_json::from_slice(body).ok().filter(|_| is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: StatementFormat, body: &str) -> Statement<'_> {
        Statement::read(format, body.as_bytes())
    }

    #[test]
    fn bodies_of_each_format() {
        let sql = read(StatementFormat::Sql, "SELECT name FROM customer WHERE id = 7");
        assert_eq!((sql.class, &sql.ontology), (StatementClass::Read, &None));
        let json = r#"{"ontology_name": "sales", "query": "select name from customer\nwhere id=8", "x": [1]}"#;
        let json = read(StatementFormat::Json, json);
        assert_eq!((json.class, json.ontology.as_deref()), (StatementClass::Read, Some("sales")));
        assert_eq!(json.fingerprint(), sql.fingerprint(), "they differ in a literal and in blanks");
        let mcp = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"query","arguments":{}}}"#;
        assert_eq!(read(StatementFormat::Mcp, mcp).mcp, Some(McpCall::Tool("query".into())));
        let list = r#" {"method":"tools/list","params":{"name":"a"}}"#;
        assert_eq!(read(StatementFormat::Mcp, list).mcp, Some(McpCall::NoTool));
    }

    #[test]
    fn what_does_not_fit_is_unknown() {
        for (format, body) in [
            (StatementFormat::Sql, "hello"),
            (StatementFormat::Json, "{}"),
            (StatementFormat::Json, r#"{"query": "SELECT 1""#),
            (StatementFormat::Json, r#"{"query": "SELECT 1", "query": "DROP TABLE t"}"#),
            (StatementFormat::Json, r#"{"query": ["SELECT 1"]}"#),
            (StatementFormat::Json, r#"[{"query": "SELECT 1"}]"#),
            (StatementFormat::Thrift, "SELECT 1"),
            (StatementFormat::Mcp, r#"[{"method":"tools/call","params":{"name":"a"}}]"#),
            (StatementFormat::Mcp, r#"["ping",{"method":"tools/call","params":{"name":"a"}}]"#),
            (StatementFormat::Mcp, r#"{"method":"ping","method":"tools/call","params":{"name":"a"}}"#),
            (StatementFormat::Mcp, r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#),
            (StatementFormat::Mcp, r#"{"method":"tools/call"}"#),
            (StatementFormat::Json, r#"["SELECT 1", "sales"]"#),
        ] {
            let read = read(format, body);
            assert_eq!(Statement { text: None, ..read }, Statement::UNKNOWN, "{body}");
        }
        assert_eq!(Statement::read(StatementFormat::Sql, b"SELECT '\xff'"), Statement::UNKNOWN);
    }
}
