//! Finds the statement in a Thrift `ExecuteStatement` call of HiveServer2's `TCLIService`, in the binary protocol.

/// Calls have few levels: the arguments, the request, the session handle and its identifier.
const MAX_DEPTH: usize = 8;

const STOP: u8 = 0;
const STRING: u8 = 11;
const STRUCT: u8 = 12;
const MAP: u8 = 13;

/// Version 1 of the binary protocol, and the message type CALL.
const CALL: u32 = 0x8001_0001;

/// Calls that execute no statement: those of a session, of its metadata, and of results.
const SESSION_CALLS: [&str; 20] = [
    "OpenSession",
    "SetClientInfo",
    "CloseSession",
    "GetInfo",
    "GetTypeInfo",
    "GetCatalogs",
    "GetSchemas",
    "GetTables",
    "GetTableTypes",
    "GetColumns",
    "GetFunctions",
    "GetPrimaryKeys",
    "GetCrossReference",
    "GetOperationStatus",
    "GetQueryId",
    "GetLog",
    "CancelOperation",
    "CloseOperation",
    "GetResultSetMetadata",
    "FetchResults",
];

/// Whether a message is one complete call that executes no statement.
pub fn is_session_call(message: &[u8]) -> bool {
    let Some((name, mut arguments)) = call(message) else { return false };
    SESSION_CALLS.contains(&name) && arguments.skip(STRUCT, 0).is_some() && arguments.0.is_empty()
}

/// The ontology of a session that the message opens: the database in its configuration. Empty if there are two. `None` if
/// there is none, or only Hive's default, which drivers send if the user has chosen none.
pub fn session_ontology(message: &[u8]) -> Option<&str> {
    let (name, mut arguments) = call(message)?;
    if name != "OpenSession" {
        return None;
    }
    let mut ontology = None;
    // struct OpenSession_args { 1: TOpenSessionReq req }
    while let Some((kind, _)) = arguments.field()? {
        if kind != STRUCT {
            arguments.skip(kind, 0)?;
            continue;
        }
        // struct TOpenSessionReq { 1: i32 client_protocol, …, 4: map<string, string> configuration }
        while let Some((kind, _)) = arguments.field()? {
            if kind != MAP {
                arguments.skip(kind, 0)?;
                continue;
            }
            if (arguments.byte()?, arguments.byte()?) != (STRING, STRING) {
                return None;
            }
            for _ in 0..arguments.number()? {
                let (key, value) = (arguments.bytes()?, arguments.bytes()?);
                let name = std::str::from_utf8(value).unwrap_or_default();
                // Hive compares only the beginning of the key.
                if key.starts_with(b"use:") && !name.is_empty() && !name.eq_ignore_ascii_case("default") {
                    ontology = if ontology.is_none_or(|other| other == name) { Some(name) } else { Some("") };
                }
            }
        }
    }
    ontology
}

/// The text of the statement; `None` if the message is not a complete `ExecuteStatement` call.
pub fn statement(message: &[u8]) -> Option<&str> {
    let (name, mut arguments) = call(message)?;
    if name != "ExecuteStatement" {
        return None;
    }
    let mut statement = None;
    // struct ExecuteStatement_args { 1: TExecuteStatementReq req }
    while let Some((kind, number)) = arguments.field()? {
        if (kind, number) != (STRUCT, 1) {
            arguments.skip(kind, 0)?;
            continue;
        }
        // struct TExecuteStatementReq { 1: TSessionHandle sessionHandle, 2: string statement, … }
        while let Some((kind, number)) = arguments.field()? {
            match (kind, number) {
                // SECURITY: the backend would use one of two, and it is not known which.
                (STRING, 2) if statement.is_some() => return None,
                (STRING, 2) => statement = Some(std::str::from_utf8(arguments.bytes()?).ok()?),
                (kind, _) => arguments.skip(kind, 0)?,
            }
        }
    }
    // Nothing may follow that another reader could take for a second call.
    if arguments.0.is_empty() { statement } else { None }
}

fn call(message: &[u8]) -> Option<(&str, ThriftReader<'_>)> {
    let mut reader = ThriftReader(message);
    if reader.number()? != CALL {
        return None;
    }
    let name = std::str::from_utf8(reader.bytes()?).ok()?;
    let _sequence = reader.number()?;
    Some((name, reader))
}

/// The bytes that are left.
struct ThriftReader<'a>(&'a [u8]);

impl<'a> ThriftReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).ok()?)
    }

    /// The type and number of the next field; `Some(None)` at the end of the struct.
    fn field(&mut self) -> Option<Option<(u8, u16)>> {
        let kind = self.byte()?;
        if kind == STOP {
            return Some(None);
        }
        Some(Some((kind, u16::from_be_bytes(self.take(2)?.try_into().ok()?))))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            // Boolean and byte; double and 64 bits; 16 bits; 32 bits.
            2 | 3 => drop(self.take(1)?),
            4 | 10 => drop(self.take(8)?),
            6 => drop(self.take(2)?),
            8 => drop(self.take(4)?),
            STRING => drop(self.bytes()?),
            STRUCT => {
                while let Some((kind, _)) = self.field()? {
                    self.skip(kind, depth + 1)?;
                }
            }
            MAP => {
                let (key, value) = (self.byte()?, self.byte()?);
                for _ in 0..self.number()? {
                    self.skip(key, depth + 1)?;
                    self.skip(value, depth + 1)?;
                }
            }
            // Set and list.
            14 | 15 => {
                let item = self.byte()?;
                for _ in 0..self.number()? {
                    self.skip(item, depth + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
        bytes.extend(text.as_bytes());
    }

    /// As `pytimbr_sqla` and Hive's JDBC driver send it.
    fn execute(statements: &[&str]) -> Vec<u8> {
        let mut message = CALL.to_be_bytes().to_vec();
        text(&mut message, "ExecuteStatement");
        message.extend([0, 0, 0, 7, STRUCT, 0, 1]);
        // The session handle: a struct with a struct of two strings.
        message.extend([STRUCT, 0, 1, STRUCT, 0, 1, STRING, 0, 1]);
        text(&mut message, "guid");
        message.extend([STRING, 0, 2]);
        text(&mut message, "secret");
        message.extend([STOP, STOP]);
        for statement in statements {
            message.extend([STRING, 0, 2]);
            text(&mut message, statement);
        }
        // An empty map of strings, and a boolean.
        message.extend([13, 0, 3, STRING, STRING, 0, 0, 0, 0, 2, 0, 4, 1, STOP, STOP]);
        message
    }

    #[test]
    fn the_statement_of_a_call_is_found() {
        let message = execute(&["SELECT 1"]);
        assert_eq!(statement(&message), Some("SELECT 1"));
        assert!(!is_session_call(&message));
    }

    #[test]
    fn a_session_begins_in_the_database_of_its_configuration() {
        let open = |configuration: &[(&str, &str)]| {
            let mut message = CALL.to_be_bytes().to_vec();
            text(&mut message, "OpenSession");
            message.extend([0, 0, 0, 0, STRUCT, 0, 1, 8, 0, 1, 0, 0, 0, 7, MAP, 0, 4, STRING, STRING]);
            message.extend(u32::try_from(configuration.len()).expect("few").to_be_bytes());
            configuration.iter().for_each(|(key, value)| {
                text(&mut message, key);
                text(&mut message, value);
            });
            message.extend([STOP, STOP]);
            message
        };
        for (configuration, expected) in [
            (&[][..], None),
            (&[("use:database", "default")], None),
            (&[("set:x", "1"), ("use:database", "hr")], Some("hr")),
            (&[("use:x", "hr"), ("use:database", "hr")], Some("hr")),
            (&[("use:x", "hr"), ("use:database", "sales")], Some("")),
        ] {
            let message = open(configuration);
            assert!(is_session_call(&message));
            assert_eq!(session_ontology(&message), expected, "{configuration:?}");
        }
        assert_eq!(session_ontology(&execute(&["SELECT 1"])), None);
    }

    #[test]
    fn anything_else_has_no_statement() {
        let message = execute(&["SELECT 1"]);
        for length in 0..message.len() {
            assert_eq!(statement(&message[..length]), None, "the first {length} bytes");
        }
        assert_eq!(statement(&[&message[..], b"\0"].concat()), None, "one byte more");
        assert_eq!(statement(&execute(&["SELECT 1", "DROP TABLE t"])), None, "two statements");
        assert_eq!(statement(&execute(&[])), None);
        let other = [&CALL.to_be_bytes()[..], &[0, 0, 0, 1], b"x", &[0, 0, 0, 0, STOP]].concat();
        assert_eq!(statement(&other), None);
        let fetch = [&CALL.to_be_bytes()[..], &[0, 0, 0, 12], b"FetchResults", &[0, 0, 0, 0, STOP]].concat();
        assert!(is_session_call(&fetch) && !is_session_call(&fetch[..fetch.len() - 1]));
        assert!(!is_session_call(&[fetch, execute(&["DROP TABLE t"])].concat()), "a second call behind it");
        // A list of 2^32 empty structs costs no time.
        let mut deep = CALL.to_be_bytes().to_vec();
        text(&mut deep, "ExecuteStatement");
        deep.extend([0, 0, 0, 0, 15, 0, 9, STRUCT, 255, 255, 255, 255]);
        assert_eq!(statement(&deep), None);
        let nested = [&deep[..deep.len() - 8], &[STRUCT, 0, 1].repeat(100)].concat();
        assert_eq!(statement(&nested), None);
    }
}
