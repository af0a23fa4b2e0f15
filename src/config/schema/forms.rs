//! The form of an option, and of a key of an entry, as JSON Schema.

use serde_json::{Value, json};

use super::entries::{EntryForm, EntryKey, ROUTES, entry_keys};
use crate::config::list_entry::EmptyKeys;
use crate::config::options::{OptionSpec, Shape};
use crate::config::print::json_value;
use crate::config::routes::BUILT_IN;

/// Patterns use only what every engine supports, so no lookaround.
const URL: &str = r"^(https?://[^/?#@\s]+/?|unix:(//)?/[^/\s]([^\s]*[^/\s])?)$";
const SEVERAL_URLS: &str = concat!(
    r"^\s*(https?://[^/?#@,\s]+/?|unix:(//)?/[^/,\s]([^,\s]*[^/,\s])?)\s*",
    r"(,\s*(https?://[^/?#@,\s]+/?|unix:(//)?/[^/,\s]([^,\s]*[^/,\s])?)\s*)*$"
);
const NAMES: &str = r"^\s*[A-Za-z0-9_*-]+\s*(,\s*[A-Za-z0-9_*-]+\s*)*$";
const ADDRESS: &str = concat!(
    r"^(off|((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d):\d{1,5}",
    r"|\[[0-9A-Fa-f:.]+(%\d+)?\]:\d{1,5})$"
);
const NETWORK: &str = r"(unix:|[0-9A-Fa-f:.]+(/\d{1,3})?)";
const SIZE: &str = r"^\d+ *(B|KiB|MiB|GiB)$";
const ABOVE_ZERO: &str = r"^\+?0*[1-9]\d*$";
const WHOLE_NUMBER: &str = r"^\+?\d+$";
/// With the units of `humantime`.
const DURATION: &str = concat!(
    r"(\s*\d+(\.\d+)?\s*(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m",
    r"|hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y))+\s*"
);
/// Without characters that could be escaped.
const PREFIX: &str = r"^/([A-Za-z0-9._~-]+/)*[A-Za-z0-9._~-]*$";
const NAME: &str = r"^[a-z0-9_-]+$";
const MEDIA_TYPE: &str = r"^[^\s/;,]+/[^\s/;,]+$";

/// The schema of an option. `null` counts as not set.
pub fn option(option: &OptionSpec) -> Value {
    let mut schema = shape(option);
    schema["description"] = json!(option.help);
    let flag = option.flag().map(|flag| format!(", flag --{flag}")).unwrap_or_default();
    let range = option.range.map(|(min, max)| format!(", from {min} to {max}")).unwrap_or_default();
    schema["$comment"] = json!(format!("variable {}{flag}{range}", option.variable()));
    if let Some(text) = option.default {
        schema["default"] = json_value(option.shape, text);
    }
    schema
}

/// The schema of the key that names a file with a secret.
pub fn file_twin(option: &OptionSpec) -> Value {
    let mut schema = path();
    schema["description"] = json!(format!("File with the secret. {}", option.help));
    schema["$comment"] = json!(format!("variable {}_FILE", option.variable()));
    schema
}

/// The schema of `routes`, which exists in the file only.
pub fn routes() -> Value {
    let mut entry = group(ROUTES, EmptyKeys::Rejected);
    let known = json!({ "properties": { "name": { "enum": BUILT_IN } } });
    entry["anyOf"] = json!([known, { "required": ["prefix"] }, { "required": ["prefixes"] }]);
    json!({
        "type": ["array", "null"],
        "items": entry,
        "description": "Requirements for requests below a path. An entry with the name of a built-in profile \
                        enables and changes it; an entry with a new name adds a profile.",
    })
}

fn shape(option: &OptionSpec) -> Value {
    match option.shape {
        Shape::Text => json!({ "type": ["string", "null"] }),
        Shape::Secret => json!({ "type": ["string", "null"], "writeOnly": true }),
        Shape::Path => path(),
        Shape::Url => text(URL),
        Shape::Address => text(ADDRESS),
        Shape::Duration => text(&format!("^(0|{DURATION})$")),
        Shape::OptionalDuration => text(&format!("^(off|0|{DURATION})$")),
        Shape::Size => text(SIZE),
        Shape::Count => {
            let mut schema = json!({ "type": ["integer", "string", "null"], "minimum": 1, "pattern": ABOVE_ZERO });
            if let Some((_, max)) = option.range {
                schema["maximum"] = json_value(Shape::Count, max);
            }
            schema
        }
        Shape::Limit => {
            json!({ "type": ["integer", "string", "null"], "minimum": 0, "maximum": u32::MAX, "pattern": WHOLE_NUMBER })
        }
        Shape::Bool => json!({ "enum": [true, false, "true", "false", null] }),
        Shape::Choice(words) => {
            json!({ "enum": words.iter().map(|word| json!(word)).chain([Value::Null]).collect::<Vec<_>>() })
        }
        Shape::Networks => {
            let pattern = format!(r"^\s*({NETWORK}\s*(,\s*|$))*$");
            json!({
                "type": ["array", "string", "null"],
                "items": { "type": "string", "pattern": pattern },
                "pattern": pattern,
            })
        }
        Shape::Urls => json!({
            "type": ["array", "string", "null"],
            "items": { "type": "string", "pattern": SEVERAL_URLS },
            "pattern": SEVERAL_URLS,
        }),
        Shape::Names => {
            json!({ "type": ["array", "string", "null"], "items": { "type": "string", "pattern": NAMES }, "pattern": NAMES })
        }
        Shape::List => {
            let entry = group(entry_keys(option.key).unwrap_or_default(), EmptyKeys::NotSet);
            // The value of a variable or a flag is the same list as text.
            json!({ "type": ["array", "string", "null"], "items": entry })
        }
    }
}

fn text(pattern: &str) -> Value {
    json!({ "type": ["string", "null"], "pattern": pattern })
}

fn path() -> Value {
    json!({ "type": ["string", "null"], "minLength": 1 })
}

/// The schema of one entry of a list.
fn group(fields: &[EntryKey], empty: EmptyKeys) -> Value {
    let property = |field: &EntryKey| {
        let mut schema = form(field.form);
        if empty == EmptyKeys::NotSet && !field.required {
            schema = json!({ "anyOf": [schema, { "type": "null" }] });
        }
        schema["description"] = json!(field.meaning.replace('`', ""));
        (field.key.to_owned(), schema)
    };
    let required: Vec<_> = fields.iter().filter(|field| field.required).map(|field| field.key).collect();
    let mut schema = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": fields.iter().map(property).collect::<serde_json::Map<_, _>>(),
        "required": required,
    });
    let alternatives: Vec<_> = fields.iter().filter(|field| field.one_of).map(|field| field.key).collect();
    if !alternatives.is_empty() {
        let key_is_set =
            |key: &&str| json!({ "required": [key], "properties": { *key: { "not": { "type": "null" } } } });
        schema["oneOf"] = alternatives.iter().map(key_is_set).collect();
    }
    schema
}

fn form(form: EntryForm) -> Value {
    let words = |words: &[&str]| json!({ "enum": words });
    let list = |items: Value| json!({ "type": "array", "items": items, "minItems": 1 });
    match form {
        EntryForm::Text => json!({ "type": "string", "minLength": 1 }),
        EntryForm::Texts => one_or_more(&json!({ "type": "string", "minLength": 1 })),
        EntryForm::TextsByName => {
            let texts = one_or_more(&json!({ "type": "string", "minLength": 1 }));
            json!({ "type": "object", "additionalProperties": texts })
        }
        EntryForm::Words(choice) => one_or_more(&words(choice)),
        EntryForm::Flag => json!({ "type": "boolean" }),
        EntryForm::Number => json!({ "type": "number", "minimum": 0 }),
        EntryForm::Name => json!({ "type": "string", "pattern": NAME }),
        EntryForm::Prefix => json!({ "type": "string", "pattern": PREFIX }),
        EntryForm::Size => json!({ "type": "string", "pattern": SIZE }),
        EntryForm::MediaTypes => {
            json!({ "anyOf": [{ "enum": ["any"] }, list(json!({ "type": "string", "pattern": MEDIA_TYPE }))] })
        }
        EntryForm::Prefixes => list(json!({ "type": "string", "pattern": PREFIX })),
        EntryForm::Duration => json!({ "type": "string", "pattern": format!("^(0|{DURATION})$") }),
        EntryForm::Group(keys) => group(keys, EmptyKeys::NotSet),
        EntryForm::WordList(choice) => list(words(choice)),
        EntryForm::Word(choice) => words(choice),
        EntryForm::Option(option) => shape(option),
    }
}

/// A list of items, or a single item.
fn one_or_more(item: &Value) -> Value {
    json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
}
