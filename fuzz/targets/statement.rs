//! Reads statements from bodies of any form. A statement that may only read must stay one whatever surrounds it, and a
//! second statement must never hide behind it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use timbr_gateway::http::statement::{Statement, StatementClass, StatementFormat};

const FORMATS: [StatementFormat; 4] =
    [StatementFormat::Sql, StatementFormat::Json, StatementFormat::Thrift, StatementFormat::Mcp];

fuzz_target!(|body: &[u8]| {
    for format in FORMATS {
        let statement = Statement::read(format, body);
        // Calls of a Thrift session have a class, but no statement.
        let has_statement = !matches!(statement.class, StatementClass::Unknown | StatementClass::Show);
        assert!(statement.fingerprint().is_some() || !has_statement);
        assert!(statement.fingerprint().is_none() || statement.class != StatementClass::Unknown);
        // A JSON-RPC batch could hide a call.
        assert!(statement.mcp.is_none() || body.is_empty() || body.trim_ascii_start().starts_with(b"{"));
        // A body that was cut off in the middle is not mistaken for a statement of a different class.
        if format != StatementFormat::Sql && !body.is_empty() && statement.class != StatementClass::Unknown {
            let cut = Statement::read(format, &body[..body.len() - 1]);
            assert!(cut.class == StatementClass::Unknown || body[body.len() - 1].is_ascii_whitespace(), "{cut:?}");
        }
    }
    let Ok(text) = std::str::from_utf8(body) else { return };
    let read = |text: &str| Statement::read(StatementFormat::Sql, text.as_bytes()).class;
    let class = read(text);
    if class == StatementClass::Unknown {
        return;
    }
    assert_eq!(read(&format!("-- a comment\n/* one more */ {text}")), class);
    assert_eq!(read(&format!("{text}\n;\n")), class);
    assert_eq!(read(&format!("{text}\n; DROP TABLE t")), StatementClass::Unknown);
    if !text.contains(';') {
        let part = format!("WITH a AS (SELECT 1) DELETE FROM t WHERE x IN ({text}\n)");
        // What can begin a statement in T-SQL, and is no query, makes the whole of it doubtful.
        let is_doubtful =
            matches!(class, StatementClass::Admin | StatementClass::Show) && read(&part) == StatementClass::Unknown;
        assert!(is_doubtful || read(&part) == StatementClass::Write);
    }
});
