//! Suggests a known name for one that is unknown.

use crate::config::options::{self, PREFIX};

/// "unknown key; did you mean …?"
pub fn unknown_name(what: &str, name: &str, known: &[String]) -> String {
    if name.contains(|c: char| c.is_whitespace() && !c.is_ascii()) {
        return format!("unknown {what}; it contains a space of a web page (such as U+00A0): use ordinary spaces");
    }
    match nearest(name, known) {
        Some(candidate) => format!("unknown {what}; did you mean {candidate}?"),
        None => format!("unknown {what}; see `timbr-gateway serve --help`"),
    }
}

/// A known name that differs in at most three letters and half of the last word, or one that ends with this one (`url`
/// at the top of the file).
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let typed = |candidate: &&String| strsim::osa_distance(name, candidate);
    let closest = known.iter().min_by_key(typed).filter(|candidate| typed(candidate) <= 3.min(last.len() / 2));
    let mut ends = known.iter().filter(|candidate| candidate.rsplit('.').next() == Some(last));
    // If several keys have the same end, the suggestion would be a guess.
    let end = ends.next().filter(|_| ends.next().is_none());
    let find = |spelling: &str| known.iter().find(|candidate| normalized(candidate) == normalized(spelling));
    let spelt = find(name).or_else(|| find(name.strip_prefix(PREFIX)?));
    spelt.or(end).or(closest)
}

/// Letters and digits only, so that `upstream-url` and `upstreamUrl` equal `upstream.url`.
fn normalized(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The names of the sections of the file.
pub fn all_groups() -> Vec<String> {
    let mut groups: Vec<_> =
        options::all().filter_map(|option| Some(option.key.split_once('.')?.0.to_owned())).collect();
    groups.dedup();
    groups
}

/// The keys of all options, and those that name the file of a secret.
pub fn all_keys() -> Vec<String> {
    options::all().flat_map(|option| [Some(option.key.to_owned()), option.file_twin()]).flatten().collect()
}
