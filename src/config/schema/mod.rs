//! Generates the JSON Schema (2020-12) of the configuration file from the table of options, for editors, the chart and
//! programs. Knows no relation between options: the schema accepts every valid file and also some invalid ones.
//!
//! There is no `$ref`, so that the schema can be embedded in other schemas at any place.

mod entries;
mod forms;

use serde_json::{Map, Value, json};

use crate::config::options::{self, OptionSpec};

pub use entries::{EntryKey, ROUTES, entry_keys, lists};

/// The schema of the whole file.
pub fn schema() -> Value {
    let mut root = SchemaGroup::default();
    for option in options::all() {
        root.add(option.key, option);
    }
    let mut schema = root.schema();
    let members = schema.as_object_mut().expect("a group is an object");
    members.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    members.insert("title".to_owned(), json!("Configuration file of timbr-gateway"));
    members.insert("type".to_owned(), json!("object"));
    members["properties"]["routes"] = forms::routes();
    schema
}

/// A group of keys that is being built.
#[derive(Default)]
struct SchemaGroup {
    properties: Map<String, Value>,
    groups: Vec<(&'static str, SchemaGroup)>,
    secrets: Vec<&'static str>,
}

impl SchemaGroup {
    /// Adds an option by the part of its key below this group.
    fn add(&mut self, key: &'static str, option: &OptionSpec) {
        let Some((name, rest)) = key.split_once('.') else {
            self.properties.insert(key.to_owned(), forms::option(option));
            if option.file_twin().is_some() {
                self.properties.insert(format!("{key}_file"), forms::file_twin(option));
                self.secrets.push(key);
            }
            return;
        };
        let at = self.groups.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
            self.groups.push((name, SchemaGroup::default()));
            self.groups.len() - 1
        });
        self.groups[at].1.add(rest, option);
    }

    fn schema(self) -> Value {
        let mut properties = self.properties;
        properties.extend(self.groups.into_iter().map(|(name, group)| (name.to_owned(), group.schema())));
        let mut schema = json!({
            "type": ["object", "null"],
            "additionalProperties": false,
            "properties": properties,
        });
        if !self.secrets.is_empty() {
            schema["allOf"] = self.secrets.into_iter().map(not_both).collect();
        }
        schema
    }
}

/// A secret is set in this file or read from a separate one, but not both.
fn not_both(secret: &'static str) -> Value {
    let file = format!("{secret}_file");
    let given = json!({ "type": "string" });
    json!({ "not": { "type": "object", "required": [secret, &file], "properties": { secret: &given, &file: &given } } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::Shape;
    use crate::config::{Sources, load};

    /// The schema of the option with this key.
    fn schema_of<'a>(schema: &'a Value, key: &str) -> &'a Value {
        key.split('.').fold(schema, |schema, name| &schema["properties"][name])
    }

    #[test]
    fn every_option_has_a_schema_at_its_place() {
        let schema = schema();
        for option in options::all() {
            assert_eq!(schema_of(&schema, option.key)["description"], option.help, "{}", option.key);
            if let Some(twin) = option.file_twin() {
                assert!(schema_of(&schema, &twin).is_object(), "{twin}");
            }
        }
        assert_eq!(schema_of(&schema, "upstream")["additionalProperties"], false);
        assert_eq!(schema_of(&schema, "tokens.ttl")["default"], "24h");
        assert_eq!(schema_of(&schema, "tokens.max")["default"], 1_000_000);
        assert_eq!(schema_of(&schema, "log.access")["default"], true);
    }

    #[test]
    fn every_list_has_a_table_of_its_keys() {
        for option in options::all().filter(|option| option.shape == Shape::List) {
            assert!(entry_keys(option.key).is_some(), "{} has no entries in config/schema", option.key);
        }
    }

    /// The problems of a file with this text.
    fn problems(text: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.yaml");
        std::fs::write(&path, text).expect("written");
        let problems = load(&Sources { file: Some(path), ..Sources::default() }).map(drop).expect_err("bad");
        problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    #[test]
    fn readers_and_schema_have_the_same_keys() {
        for (list, fields) in lists() {
            let text = match list.split_once('.') {
                Some((group, name)) => format!("{group}: {{{name}: [{{nonsense: 1}}]}}"),
                None => format!("{list}: [{{nonsense: 1}}]"),
            };
            let problems = problems(&text);
            let place = format!("{list}[0].nonsense: unknown key; must be one of ");
            let mut known: Vec<_> = problems
                .lines()
                .find_map(|line| line.strip_prefix(&place))
                .expect("nonsense is unknown")
                .split(", ")
                .collect();
            let mut expected: Vec<_> = fields.iter().map(|field| field.key).collect();
            known.sort_unstable();
            expected.sort_unstable();
            assert_eq!(known, expected, "{list}");
        }
    }
}
