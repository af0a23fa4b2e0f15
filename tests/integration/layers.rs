//! Rules about the source: layers, sizes and forbidden words.

use std::path::{Path, PathBuf};

/// The folders of `src`, which are the layers, from the lowest to the highest. A folder uses only itself and the
/// folders before it in this list.
const LAYERS: [&str; 16] = [
    "base",
    "os",
    "http",
    "observability",
    "config",
    "store",
    "admission",
    "tls",
    "upstream",
    "outbound",
    "auth",
    "gateway",
    "downstream",
    "admin",
    "app",
    "cli",
];

/// The root of `src` should be readable as a table of contents.
const MAX_ROOT_ENTRIES: usize = 20;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The folder of `src` that a file belongs to; `None` for the files at the root.
fn layer_of(path: &Path) -> Option<usize> {
    let below_src = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
    let (folder, rest) = below_src.to_str().expect("text").split_once('/').unwrap_or(("", ""));
    if rest.is_empty() {
        return None;
    }
    Some(layer(folder).unwrap_or_else(|| panic!("src/{folder} is not in LAYERS")))
}

fn layer(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == folder)
}

/// A file without its test modules: each `#[cfg(test)]` item is left out, from its attribute to its closing brace or
/// semicolon. The code after it is checked, too.
fn without_tests(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        if !line.trim_start().starts_with("#[cfg(test)]") {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // rustfmt puts the end of an item at the indentation of its beginning.
        for line in lines.by_ref() {
            let is_at_indent = line.len() - line.trim_start().len() == indent;
            if is_at_indent && (line.trim_start().starts_with('}') || line.ends_with(';') || line.ends_with(',')) {
                break;
            }
        }
    }
    kept
}

/// The names that follow `crate::` in a line, the ones in braces as well.
fn folders_used(line: &str) -> Vec<String> {
    let name = |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    for (_, rest) in line.match_indices("crate::").map(|(at, word)| line.split_at(at + word.len())) {
        match rest.strip_prefix('{') {
            Some(_) => panic!("one `use` for each folder, please: {line}"),
            None => found.push(name(rest)),
        }
    }
    found
}

#[test]
fn folders_use_only_the_folders_below_them() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(user) = layer_of(&path) else { continue };
        for line in without_tests(&text).lines() {
            for used in folders_used(line) {
                // A macro that the crate exports has no folder.
                if layer(&used).is_none_or(|used| used > user) && !line.contains(&format!("crate::{used}!")) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn code_after_a_test_item_is_checked() {
    let text = "a\n#[cfg(test)]\nmod tests {\n    b\n}\nc\n    #[cfg(test)]\n    use d;\n    e\n";
    assert_eq!(without_tests(text), "a\nc\n    e\n");
}

#[test]
fn the_source_root_has_few_entries_in_layer_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let entries = std::fs::read_dir(&root).expect("a folder").count();
    assert!(entries <= MAX_ROOT_ENTRIES, "src has {entries} entries");
    let lib = std::fs::read_to_string(root.join("lib.rs")).expect("text");
    let declared: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ").and_then(|name| name.strip_suffix(';'))).collect();
    assert_eq!(declared, LAYERS, "lib.rs lists the folders in the order of the layers");
}

#[test]
fn only_two_types_can_be_sent_to_the_backend() {
    let mut senders: Vec<_> = sources()
        .iter()
        .filter(|(_, text)| text.contains("impl OutgoingRequest for"))
        .map(|(path, _)| path.file_name().expect("a name").to_str().expect("text").to_owned())
        .collect();
    senders.sort();
    assert_eq!(senders, ["rewrite.rs", "system_query.rs"]);
}

/// A file with more lines has a second idea in it.
const MAX_LINES: usize = 450;

/// Tables of data, which are read one entry at a time. Their length is the number of entries.
const TABLES: [&str; 2] = ["src/config/options/table.rs", "src/gateway/rejection/table.rs"];

#[test]
fn files_are_small() {
    for (path, text) in sources() {
        let lines = without_tests(&text).lines().count();
        if TABLES.iter().any(|table| path.ends_with(table)) {
            continue;
        }
        assert!(lines <= MAX_LINES, "{} has {lines} lines; split it", path.display());
    }
}

/// Such a field would be in the line twice, and a reader of JSON takes either.
#[test]
fn no_event_has_a_field_with_the_name_of_a_fixed_one() {
    for (path, text) in sources() {
        for event in ["error!(", "warn!(", "info!(", "debug!("].iter().flat_map(|name| text.split(name).skip(1)) {
            let arguments = event.split_once(");").map_or(event, |(arguments, _)| arguments);
            for argument in arguments.split(',').map(str::trim) {
                let name = argument.split_once(" =").map_or(argument, |(name, _)| name).trim_start_matches(['%', '?']);
                let is_fixed = ["timestamp", "level", "target", "message"].contains(&name);
                assert!(!is_fixed, "{}: {argument}", path.display());
            }
        }
    }
}

#[test]
fn the_source_has_no_todo() {
    for (path, text) in sources() {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let wrong = [".unwrap()", "todo!", "unimplemented!", "dbg!", "TODO", "FIXME", "XXX"];
            assert!(!wrong.iter().any(|word| line.contains(word)), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
