//! A subset of SQL: `SELECT * | columns FROM [dtimbr.]concept [LIMIT n]`, and `SELECT 1`, which clients and `doctor`
//! send as a connection test. `SELECT SLEEP(seconds)` takes that time.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::cli::demo::backend::data::{CONCEPTS, DemoConcept};

/// Maximum duration of a statement.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// How long a statement takes.
pub fn duration(sql: &str) -> Duration {
    sleep_seconds(sql).map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds).min(MAX_SLEEP))
}

fn sleep_seconds(sql: &str) -> Option<u64> {
    let sql = sql.trim().trim_end_matches(';').to_ascii_lowercase();
    sql.strip_prefix("select sleep(")?.strip_suffix(')')?.parse().ok()
}

/// Returns the rows as objects, or an error message for the client.
pub fn run(ontology: &str, sql: &str) -> Result<Vec<Value>, String> {
    const USAGE: &str = "the demo supports SELECT * | columns FROM concept [LIMIT n]";
    if let Some(seconds) = sleep_seconds(sql) {
        return Ok(vec![json!({ "sleep": seconds })]);
    }
    let sql = sql.trim().trim_end_matches(';').replace(',', " , ");
    let words: Vec<&str> = sql.split_whitespace().collect();
    if let [select, number] = words[..]
        && select.eq_ignore_ascii_case("select")
        && let Ok(number) = number.parse::<i64>()
    {
        return Ok(vec![json!({ number.to_string(): number })]);
    }
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let from = (1..words.len()).find(|at| is(*at, "from")).filter(|_| is(0, "select")).ok_or(USAGE)?;
    let columns: Vec<&str> = words[1..from].iter().copied().filter(|word| *word != ",").collect();
    let concept = concept(ontology, words.get(from + 1).ok_or(USAGE)?)?;
    let limit = match words.len() - (from + 2) {
        0 => usize::MAX,
        2 if is(from + 2, "limit") => words[from + 3].parse().map_err(|_| USAGE)?,
        _ => return Err(USAGE.to_owned()),
    };
    select(concept, &columns, limit)
}

fn concept(ontology: &str, name: &str) -> Result<&'static DemoConcept, String> {
    let name = name.rsplit('.').next().unwrap_or(name).trim_matches(['"', '`']);
    let concept = CONCEPTS.iter().find(|concept| concept.ontology == ontology && concept.name == name);
    concept.ok_or_else(|| {
        let all: Vec<_> = CONCEPTS.iter().map(|c| format!("{}.{}", c.ontology, c.name)).collect();
        format!("unknown concept {name} in the ontology {ontology}; known concepts: {}", all.join(", "))
    })
}

fn select(concept: &DemoConcept, columns: &[&str], limit: usize) -> Result<Vec<Value>, String> {
    let mut chosen = Vec::new();
    for column in columns {
        match concept.columns.iter().position(|name| name == column) {
            Some(index) => chosen.push(index),
            None if *column == "*" => chosen.extend(0..concept.columns.len()),
            None => return Err(format!("{} has no column {column}", concept.name)),
        }
    }
    let object = |row: Vec<Value>| -> Value {
        chosen.iter().map(|at| (concept.columns[*at].to_owned(), row[*at].clone())).collect::<Map<_, _>>().into()
    };
    Ok(concept.rows().into_iter().take(limit).map(object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_objects() {
        let rows = run("sales", "select name, country from dtimbr.customer limit 1;").expect("supported");
        assert_eq!(rows, [serde_json::json!({"name": "Ada Lovelace", "country": "United Kingdom"})]);
        assert_eq!(run("sales", "SELECT 1").expect("supported"), [serde_json::json!({"1": 1})]);
        assert_eq!(run("logistics", "SELECT * FROM warehouse").expect("supported").len(), 3);
    }

    #[test]
    fn a_statement_can_take_time() {
        assert_eq!(duration("SELECT SLEEP(60)"), Duration::from_secs(60));
        assert_eq!(run("sales", "select sleep(2);").expect("supported"), [serde_json::json!({"sleep": 2})]);
        assert_eq!((duration("select sleep(99999)"), duration("SELECT 1")), (MAX_SLEEP, Duration::ZERO));
    }

    #[test]
    fn unsupported_queries_are_errors() {
        for sql in ["", "select", "select *", "select * from", "drop table x", "select * from customer limit x"] {
            assert!(run("sales", sql).is_err(), "{sql}");
        }
        assert!(run("sales", "select age from customer").expect_err("no such column").contains("age"));
        assert!(run("sales", "select * from warehouse").expect_err("elsewhere").contains("sales.customer"));
    }
}
