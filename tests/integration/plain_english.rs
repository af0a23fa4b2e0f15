//! The repository's texts use the words that operators and Rust engineers search for.
//!
//! Read are the comments and the string literals of `src`, and the documents. A pattern that is never right is an error
//! wherever it occurs; one that is sometimes right is bounded by its share of all sentences.

use std::path::{Path, PathBuf};

/// Words that have a standard term, and that term.
const WRONG_WORDS: [(&str, &str); 24] = [
    ("anew", "again, new"),
    ("in force", "active"),
    ("out of use", "ejected"),
    ("on trial", "probing"),
    ("whoever", "the client, the user, the caller"),
    ("whomever", "the client, the user, the caller"),
    ("somebody", "a client, a user"),
    ("nobody", "no client, no user"),
    ("everybody", "all clients, all users"),
    ("anybody", "any client, any user"),
    ("who asks", "the client, the caller"),
    ("told", "reported, logged, configured"),
    ("tells", "reports, logs, shows"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("so many at once", "concurrency limit"),
    ("refusal", "rejection"),
    ("refusals", "rejections"),
    ("by heart", "known in advance"),
    ("gives way", "is rejected, is evicted"),
    ("takes turns", "fair queue"),
    ("his", "their"),
    ("he", "they, the user"),
];

/// Words that are right in some sentences: `answer` of a DNS server, `another` for one more, `order` for a sequence.
const DOUBTFUL_WORDS: [&str; 12] = [
    "answer", "answers", "answered", "another", "tell", "order", "orders", "verb", "verbs", "stands", "span",
    "whatever",
];

/// Where a wrong word is right.
const ALLOWED: [(&str, &str); 2] = [
    // The public interface keeps its names.
    ("/refusals", "an admin path"),
    ("/explain/request_id", "an admin path, whose response has a key of that name"),
];

/// Largest share of sentences with a doubtful word, in percent.
const MAX_DOUBTFUL_PERCENT: f64 = 1.0;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, endings, found);
        } else if path.extension().is_some_and(|ending| endings.iter().any(|known| *known == ending)) {
            found.push(path);
        }
    }
}

/// The files whose texts are read: Rust sources, and documents.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&repository().join("src"), &["rs", "html"], &mut found);
    for folder in ["docs", "deploy", "helm"] {
        walk(&repository().join(folder), &["md", "yaml", "yml", "txt"], &mut found);
    }
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] {
        found.push(repository().join(page));
    }
    found.sort();
    found
}

/// The parts of a line of Rust that people read: its comment, and its string literals of more than one word.
fn readable_parts(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    loop {
        let quote = rest.find('"').filter(|at| !rest[..*at].ends_with('\''));
        let comment = rest.find("//");
        match (quote, comment) {
            (quote, Some(comment)) if quote.is_none_or(|quote| comment < quote) => {
                parts.push(&rest[comment..]);
                return parts;
            }
            (Some(quote), _) => {
                let text = &rest[quote + 1..];
                let mut end = text.len();
                let mut is_escaped = false;
                for (at, byte) in text.bytes().enumerate() {
                    match byte {
                        b'\\' if !is_escaped => is_escaped = true,
                        b'"' if !is_escaped => {
                            end = at;
                            break;
                        }
                        _ => is_escaped = false,
                    }
                }
                let (literal, after) = text.split_at(end);
                if literal.contains(' ') {
                    parts.push(literal);
                }
                rest = after.strip_prefix('"').unwrap_or("");
            }
            // A continued string literal has neither quotes nor a comment; code has neither words that matter.
            _ => {
                if rest.ends_with('\\') {
                    parts.push(rest);
                }
                return parts;
            }
        }
    }
}

/// The parts of a line of HTML that a browser shows.
fn visible_parts(line: &str) -> Vec<&str> {
    line.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text)).collect()
}

/// The words of a text in lower case, one blank between them and at both ends. What stands in backquotes is a name.
fn words(text: &str) -> String {
    let mut prose = String::new();
    for (at, part) in text.split('`').enumerate() {
        prose.push_str(if at % 2 == 0 { part } else { " " });
    }
    let mut spaced = String::from(" ");
    for word in prose.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '/' && c != '\'') {
        if !word.is_empty() {
            spaced.push_str(&word.to_ascii_lowercase());
            spaced.push(' ');
        }
    }
    spaced
}

fn sentences(text: &str) -> usize {
    text.split_whitespace().filter(|word| word.ends_with(['.', ':', '?', '!'])).count().max(1)
}

struct Text {
    place: String,
    words: String,
    sentences: usize,
}

/// The texts of all files, line by line.
fn texts() -> Vec<Text> {
    let mut texts = Vec::new();
    for path in files() {
        let content = std::fs::read_to_string(&path).expect("text");
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let name = path.strip_prefix(repository()).expect("below the repository").display().to_string();
        for (number, line) in content.lines().enumerate() {
            let parts = match ending {
                "rs" => readable_parts(line),
                "html" => visible_parts(line),
                _ => vec![line],
            };
            for part in parts.into_iter().filter(|part| !part.trim().is_empty()) {
                texts.push(Text {
                    place: format!("{name}:{}: {}", number + 1, line.trim()),
                    words: words(part),
                    sentences: sentences(part),
                });
            }
        }
    }
    texts
}

#[test]
fn texts_use_standard_terms() {
    let mut wrong = Vec::new();
    for text in texts() {
        if ALLOWED.iter().any(|(allowed, _)| text.words.contains(allowed)) {
            continue;
        }
        for (word, instead) in WRONG_WORDS {
            if text.words.contains(&format!(" {word} ")) {
                wrong.push(format!("{} ({word}: write {instead})", text.place));
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn doubtful_words_are_rare() {
    let (mut all, mut doubtful) = (0, Vec::new());
    for text in texts() {
        all += text.sentences;
        if DOUBTFUL_WORDS.iter().any(|word| text.words.contains(&format!(" {word} "))) {
            doubtful.push(text.place);
        }
    }
    let percent = 100.0 * doubtful.len() as f64 / all as f64;
    assert!(percent <= MAX_DOUBTFUL_PERCENT, "{percent:.2} % of {all} sentences:\n{}", doubtful.join("\n"));
}

#[test]
fn comments_and_literals_are_read_and_code_is_not() {
    assert_eq!(readable_parts("let told = 1; // a comment"), ["// a comment"]);
    assert_eq!(readable_parts("warn!(\"a \\\"b\\\" c\", told)"), ["a \\\"b\\\" c"]);
    assert_eq!(readable_parts("let told = \"word\";"), Vec::<&str>::new());
    assert_eq!(readable_parts("    continued text \\"), ["    continued text \\"]);
    assert_eq!(visible_parts("<a href=\"#told\">one</a> two").concat(), "one two");
    assert_eq!(words("It is `told` Anew."), " it is anew ");
}
