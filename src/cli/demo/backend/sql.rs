//! As much SQL as a first look needs: `SELECT * | columns FROM [dtimbr.]concept [LIMIT n]`, and `SELECT 1`, by which clients
//! and `doctor` ask whether anybody is there.

use serde_json::{Map, Value, json};

use crate::cli::demo::backend::data::{CONCEPTS, DemoConcept};

/// The rows as objects, or a sentence about what is not understood.
pub fn run(ontology: &str, sql: &str) -> Result<Vec<Value>, String> {
    const FORM: &str = "this demo understands SELECT * | columns FROM concept [LIMIT n]";
    let sql = sql.trim().trim_end_matches(';').replace(',', " , ");
    let words: Vec<&str> = sql.split_whitespace().collect();
    if let [select, number] = words[..]
        && select.eq_ignore_ascii_case("select")
        && let Ok(number) = number.parse::<i64>()
    {
        return Ok(vec![json!({ number.to_string(): number })]);
    }
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let from = (1..words.len()).find(|at| is(*at, "from")).filter(|_| is(0, "select")).ok_or(FORM)?;
    let columns: Vec<&str> = words[1..from].iter().copied().filter(|word| *word != ",").collect();
    let concept = concept(ontology, words.get(from + 1).ok_or(FORM)?)?;
    let limit = match words.len() - (from + 2) {
        0 => usize::MAX,
        2 if is(from + 2, "limit") => words[from + 3].parse().map_err(|_| FORM)?,
        _ => return Err(FORM.to_owned()),
    };
    select(concept, &columns, limit)
}

fn concept(ontology: &str, name: &str) -> Result<&'static DemoConcept, String> {
    let name = name.rsplit('.').next().unwrap_or(name).trim_matches(['"', '`']);
    let found = CONCEPTS.iter().find(|concept| concept.ontology == ontology && concept.name == name);
    found.ok_or_else(|| {
        let all: Vec<_> = CONCEPTS.iter().map(|c| format!("{}.{}", c.ontology, c.name)).collect();
        format!("there is no concept {name} in the ontology {ontology}; there are {}", all.join(", "))
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
        chosen
            .iter()
            .map(|at| (concept.columns[*at].to_owned(), row[*at].clone()))
            .collect::<Map<_, _>>()
            .into()
    };
    Ok(concept.rows().into_iter().take(limit).map(object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_objects() {
        let rows = run("sales", "select name, country from dtimbr.customer limit 1;").expect("understood");
        assert_eq!(rows, [serde_json::json!({"name": "Ada Lovelace", "country": "United Kingdom"})]);
        assert_eq!(run("sales", "SELECT 1").expect("understood"), [serde_json::json!({"1": 1})]);
        assert_eq!(run("logistics", "SELECT * FROM warehouse").expect("understood").len(), 3);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for sql in
            ["", "select", "select *", "select * from", "drop table x", "select * from customer limit x"]
        {
            assert!(run("sales", sql).is_err(), "{sql}");
        }
        assert!(run("sales", "select age from customer").expect_err("no such column").contains("age"));
        assert!(run("sales", "select * from warehouse").expect_err("elsewhere").contains("sales.customer"));
    }
}
