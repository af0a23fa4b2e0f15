//! The fixed data of the demo backend.

use serde_json::{Value, json};

/// A concept: its columns, and rows with one value per column.
pub struct DemoConcept {
    pub ontology: &'static str,
    pub name: &'static str,
    pub columns: &'static [&'static str],
    rows: fn() -> Value,
}

impl DemoConcept {
    /// The rows, each with one value per column.
    pub fn rows(&self) -> Vec<Vec<Value>> {
        serde_json::from_value((self.rows)()).expect("rows are lists")
    }
}

/// All concepts, grouped by ontology.
pub const CONCEPTS: &[DemoConcept] = &[
    DemoConcept {
        ontology: "sales",
        name: "customer",
        columns: &["customer_id", "name", "country"],
        rows: || {
            json!([
                [1, "Ada Lovelace", "United Kingdom"],
                [2, "Grace Hopper", "United States"],
                [3, "Hedy Lamarr", "Austria"],
                [4, "Sofya Kovalevskaya", "Russia"]
            ])
        },
    },
    DemoConcept {
        ontology: "sales",
        name: "order",
        columns: &["order_id", "customer_id", "product", "amount"],
        rows: || {
            json!([
                [101, 1, "difference engine", 17000.0],
                [102, 2, "compiler", 250.5],
                [103, 3, "frequency hopper", 990.0],
                [104, 1, "punched cards", 12.25]
            ])
        },
    },
    DemoConcept {
        ontology: "logistics",
        name: "warehouse",
        columns: &["warehouse_id", "city", "capacity"],
        rows: || json!([[1, "Hamburg", 12000], [2, "Rotterdam", 30000], [3, "Trieste", 8000]]),
    },
];

/// The names of the ontologies.
pub fn ontologies() -> Vec<&'static str> {
    let mut names: Vec<_> = CONCEPTS.iter().map(|concept| concept.ontology).collect();
    names.dedup();
    names
}
