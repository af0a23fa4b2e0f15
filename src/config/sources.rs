//! Merges the sources of values: flags take precedence over the environment, the file and the defaults. Does not parse
//! values.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::secret::Secret;
use crate::config::changes::FileHashes;
use crate::config::file;
use crate::config::names::{all_groups, all_keys, unknown_name};
use crate::config::options::{self, OptionSpec, PREFIX, Shape};

/// The sources of a configuration.
#[derive(Debug, Default)]
pub struct Sources {
    /// Values of flags by key: `upstream.url`, or `upstream.api_key_file` for the file twin of a secret.
    pub flags: BTreeMap<String, String>,
    /// Environment variables; those without the gateway's prefix are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Path of the configuration file; `None`: `TIMBR_GATEWAY_CONFIG`, if it is set.
    pub file: Option<PathBuf>,
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// Name of the flag, without dashes.
    Flag(String),
    /// Name of the environment variable.
    Variable(String),
    /// Path of the configuration file.
    File(PathBuf),
    /// The default of the option.
    Default,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Flag(name) => write!(f, "flag --{name}"),
            ValueOrigin::Variable(name) => write!(f, "variable {name}"),
            ValueOrigin::File(path) => write!(f, "file {}", path.display()),
            ValueOrigin::Default => f.write_str("default"),
        }
    }
}

/// A value as text, with its origin.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The text. It is stored like a secret even if the option is not one.
    pub text: Secret,
    /// The source that it came from.
    pub origin: ValueOrigin,
}

/// A problem of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, variable or file.
    pub subject: String,
    /// The rest of a sentence that begins with the subject: "must be …".
    pub message: String,
}

impl Problem {
    /// A problem of `subject`, such as `upstream.url` or `routes[0].name`.
    pub fn new(subject: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { subject: subject.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// The problems, one on each line after the first, which is empty.
pub fn format_problems(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
    lines.concat()
}

/// The merged values by key, and the routes of the file.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The options that have a value.
    pub values: BTreeMap<&'static str, Setting>,
    /// `routes` of the file, unparsed.
    pub routes: Option<Value>,
    /// The configuration file and the files with secrets.
    pub files: Vec<PathBuf>,
    /// Hashes of the files that options name.
    pub(super) file_hashes: FileHashes,
}

impl Settings {
    /// Adds the source of the value to the problems of options that are not set in the file.
    pub(super) fn add_origins(&self, problems: &mut [Problem]) {
        for problem in problems {
            let key = problem.subject.split('[').next().unwrap_or_default();
            let origin = self.values.get(key).map(|setting| &setting.origin);
            if let Some(origin @ (ValueOrigin::Flag(_) | ValueOrigin::Variable(_))) = origin {
                problem.message.push_str(&format!(" ({origin})"));
            }
        }
    }
}

/// The values of one source, by key.
type Values = BTreeMap<String, Setting>;

/// The key under which `TIMBR_GATEWAY_CONFIG` is stored.
const CONFIG: &str = "config";

/// Merges all sources and collects all problems.
pub fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> Settings {
    let from_flag = |(key, text): (&String, &String)| {
        let origin = ValueOrigin::Flag(options::flag_of(key));
        (key.clone(), Setting { text: Secret::new(text.clone()), origin })
    };
    let flags = sources.flags.iter().map(from_flag).collect();
    let environment = gateway_variables(&sources.environment, problems);
    let from_variable = || Some(PathBuf::from(environment.get(CONFIG)?.text.expose()));
    let mut settings = Settings::default();
    let mut file = Values::new();
    if let Some(path) = sources.file.clone().or_else(from_variable) {
        let mut reader = FileReader { path: &path, values: &mut file, problems };
        settings.routes = reader.read();
        settings.files.push(path);
    }
    let levels = [flags, environment, file];
    for option in options::all() {
        if let Some(setting) = setting(option, &levels, &mut settings.files, problems) {
            settings.values.insert(option.key, setting);
        }
    }
    settings
}

/// The name in an entry of `upstreams`, and its other keys as the settings of `upstream`, defaults included.
pub fn upstream_entry(at: &str, node: Value, problems: &mut Vec<Problem>) -> Option<(Option<String>, Settings)> {
    let Value::Object(entries) = node else {
        problems.push(Problem::new(at, format!("must be a group of keys, not {}", file::kind(&node))));
        return None;
    };
    let keys = || options::all().filter(|option| option.key.starts_with("upstream."));
    let mut name = None;
    let mut values = Values::new();
    for (key, node) in entries {
        let mut problem = |message: String| problems.push(Problem::new(format!("{at}.{key}"), message));
        let option = format!("upstream.{key}");
        match (key.as_str(), shape_of(&option)) {
            ("name", _) => name = scalar(Shape::Text, node).unwrap_or_default(),
            // SECURITY: the text of a list is shown by `config print` and on the dashboard.
            (_, Some(Shape::Secret)) => problem(format!("must be in a file; use {key}_file")),
            (_, Some(shape)) => match scalar(shape, node) {
                Ok(Some(text)) => {
                    let setting = Setting { text: Secret::new(text), origin: ValueOrigin::File(at.into()) };
                    drop(values.insert(option, setting));
                }
                Ok(None) => {}
                Err(message) => problem(message),
            },
            (_, None) => {
                let is_inline = |option: &&OptionSpec| option.shape != Shape::Secret;
                let secrets = keys().filter_map(OptionSpec::file_twin);
                let known = keys().filter(is_inline).map(|option| option.key.to_owned()).chain(secrets);
                let known: Vec<_> = known.map(|key| key["upstream.".len()..].to_owned()).collect();
                problem(format!("unknown key; must be one of name, {}", known.join(", ")));
            }
        }
    }
    let mut settings = Settings::default();
    for option in keys() {
        let mut found = Vec::new();
        let setting = setting(option, std::slice::from_ref(&values), &mut settings.files, &mut found);
        problems
            .extend(found.into_iter().map(|one| Problem::new(one.subject.replacen("upstream", at, 1), one.message)));
        settings.values.extend(setting.map(|setting| (option.key, setting)));
    }
    Some((name, settings))
}

/// The value of an option from the first source that sets it.
fn setting(
    option: &OptionSpec,
    levels: &[Values],
    files: &mut Vec<PathBuf>,
    problems: &mut Vec<Problem>,
) -> Option<Setting> {
    let twin = option.file_twin().unwrap_or_default();
    for values in levels {
        match (values.get(option.key), values.get(&twin)) {
            (None, None) => {}
            (Some(setting), None) => return Some(setting.clone()),
            (None, Some(file)) => {
                files.push(PathBuf::from(file.text.expose()));
                return read_secret(file, option, problems);
            }
            (Some(setting), Some(file)) => {
                let message = match &setting.origin {
                    ValueOrigin::File(path) => {
                        format!("{} has both {} and {twin}; keep one of them", path.display(), option.key)
                    }
                    origin => format!("{origin} and {} both set it; keep one of them", file.origin),
                };
                problems.push(Problem::new(option.key, message));
                return None;
            }
        }
    }
    Some(Setting { text: Secret::new(option.default?.to_owned()), origin: ValueOrigin::Default })
}

fn read_secret(file: &Setting, option: &OptionSpec, problems: &mut Vec<Problem>) -> Option<Setting> {
    let origin = file.origin.clone();
    let path = Path::new(file.text.expose());
    match Secret::read_file(path) {
        Ok(text) => Some(Setting { text, origin }),
        Err(error) => {
            // SECURITY: the text is shown only if it is a path, because it may be the secret itself, set by mistake.
            let shown = match is_certainly_path(path) {
                true => format!(" {}", path.display()),
                false => " (whose name could be the secret itself, and is shown if it begins with ./)".to_owned(),
            };
            let message = format!("cannot read the file{shown} named by {origin}: {error}");
            problems.push(Problem::new(option.key, message));
            None
        }
    }
}

/// Collects the values of the configuration file.
struct FileReader<'a> {
    path: &'a Path,
    values: &'a mut Values,
    problems: &'a mut Vec<Problem>,
}

impl FileReader<'_> {
    /// Returns `routes`, which is not an option.
    fn read(&mut self) -> Option<Value> {
        let tree = file::read(self.path).map_err(|message| self.problem(CONFIG, message)).ok()?;
        let Value::Object(entries) = tree else {
            let message = format!("{} must contain keys and values, not {}", self.path.display(), file::kind(&tree));
            self.problem(CONFIG, message);
            return None;
        };
        let mut routes = None;
        for (key, node) in entries {
            if key == "routes" {
                routes = Some(node);
            } else {
                self.flatten(&key, node);
            }
        }
        routes
    }

    fn flatten(&mut self, key: &str, node: Value) {
        if let Some(shape) = shape_of(key) {
            match scalar(shape, node) {
                Ok(Some(text)) => {
                    let origin = ValueOrigin::File(self.path.to_owned());
                    let setting = Setting { text: Secret::new(text), origin };
                    // The parser rejects equal keys, but `a.b` at the top is also `b` below `a`.
                    if self.values.insert(key.to_owned(), setting).is_some() {
                        self.problem(
                            key,
                            "is set twice, at the top of the file and in its section; keep one".to_owned(),
                        );
                    }
                }
                Ok(None) => {}
                Err(message) => self.problem(key, message),
            }
            return;
        }
        let last = key.rsplit('.').next().unwrap_or(key);
        match node {
            Value::Object(entries) if is_group(key) => {
                for (name, node) in entries {
                    self.flatten(&format!("{key}.{name}"), node);
                }
            }
            Value::Null if is_group(key) => {}
            _ if is_group(key) => {
                self.problem(key, format!("must be a group of keys, indented below it, not {}", file::kind(&node)));
            }
            Value::Object(_) if last == key => self.problem(key, unknown_name("section", key, &all_groups())),
            Value::Object(_) if is_group(last) => {
                self.problem(key, format!("unknown key; {last} is a section of its own: remove its indentation"));
            }
            _ => self.problem(key, unknown_name("key", key, &all_keys())),
        }
    }

    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem::new(key, message));
    }
}

/// The shape of an option or of the file twin of a secret.
fn shape_of(key: &str) -> Option<Shape> {
    options::all().find_map(|option| {
        if option.key == key {
            Some(option.shape)
        } else {
            (option.file_twin().as_deref() == Some(key)).then_some(Shape::Path)
        }
    })
}

/// Whether it exists, or one of its folders other than the root.
fn is_certainly_path(path: &Path) -> bool {
    path.starts_with(".")
        || path.symlink_metadata().is_ok()
        || path.ancestors().skip(1).any(|folder| folder.file_name().is_some() && folder.is_dir())
}

fn is_group(key: &str) -> bool {
    options::all().any(|option| option.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// A value of the file as text; `Ok(None)` for an empty one, which counts as not set.
fn scalar(shape: Shape, node: Value) -> Result<Option<String>, String> {
    match (node, shape) {
        (Value::Null, _) => Ok(None),
        (Value::Array(items), Shape::Networks | Shape::Urls | Shape::Names) => {
            items.into_iter().map(item_text).collect::<Result<Vec<_>, _>>().map(|items| Some(items.join(",")))
        }
        (node @ Value::Array(_), Shape::List) => Ok(Some(node.to_string())),
        (Value::String(text), _) => Ok(Some(text)),
        (Value::Bool(value), Shape::Bool) => Ok(Some(value.to_string())),
        (Value::Number(number), Shape::Count | Shape::Limit) => Ok(Some(file::number(&number))),
        (Value::Number(_), Shape::Size) => Err("needs a unit, such as \"512KiB\" or \"100MiB\"".to_owned()),
        (Value::Number(_), Shape::Duration | Shape::OptionalDuration) => {
            Err("needs a unit, such as \"30s\", \"10m\" or \"1500ms\"".to_owned())
        }
        // YAML parses 0123 as 123 and 1e3 as 1000: text that looks like a number would change silently.
        (Value::Number(_), Shape::Choice(_))
        | (Value::Number(_) | Value::Bool(_), Shape::Text | Shape::Secret | Shape::Path | Shape::Names) => {
            Err("must be text; put it in quotes".to_owned())
        }
        (node, Shape::List) => Err(format!("must be a list, not {}", file::kind(&node))),
        // Quotes would not help: the parser of the option rejects it, and says what it must be.
        (Value::Bool(value), _) => Ok(Some(value.to_string())),
        (Value::Number(number), _) => Ok(Some(file::number(&number))),
        (node, _) => Err(format!("must be a single value, not {}", file::kind(&node))),
    }
}

fn item_text(node: Value) -> Result<String, String> {
    match node {
        Value::String(text) => Ok(text),
        other => Err(format!("must contain text, not {}", file::kind(&other))),
    }
}

/// The variables of the gateway. An unknown one is an error: otherwise a typing mistake in
/// `TIMBR_GATEWAY_TOKENS_FOREIGN` would silently leave a check disabled.
fn gateway_variables(environment: &[(OsString, OsString)], problems: &mut Vec<Problem>) -> Values {
    let mut keys = BTreeMap::from([("TIMBR_GATEWAY_CONFIG".to_owned(), CONFIG.to_owned())]);
    for option in options::all() {
        keys.insert(option.variable(), option.key.to_owned());
        keys.extend(option.file_twin().map(|twin| (format!("{}_FILE", option.variable()), twin)));
    }
    let mut values = Values::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let Some(key) = keys.get(name) else {
            // Names are case-sensitive; an orchestrator sets `timbr-gateway-tokens-ttl`, too.
            let is_misspelt = keys.contains_key(&name.to_ascii_uppercase().replace('-', "_"));
            if is_misspelt || name.starts_with(PREFIX) && !is_service_link(name, value) {
                let known: Vec<_> = keys.keys().cloned().collect();
                problems.push(Problem::new(name, unknown_name("variable", name, &known)));
            }
            continue;
        };
        match value.to_str() {
            // Compose files and charts pass unset values as empty variables.
            Some("") => {}
            Some(value) => {
                let origin = ValueOrigin::Variable(name.to_owned());
                values.insert(key.clone(), Setting { text: Secret::new(value.to_owned()), origin });
            }
            None => problems.push(Problem::new(name, "is not valid UTF-8")),
        }
    }
    values
}

/// Whether Kubernetes set this variable for a Service whose name begins with `timbr-gateway`:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT[_name]`, `…_PORT=tcp://…`, `…_PORT_443_TCP[_ADDR|_PORT|_PROTO]`.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let Some(rest) = name.strip_prefix("TIMBR_GATEWAY_") else { return false };
    let rest = format!("_{rest}");
    if rest.ends_with("_SERVICE_HOST") || rest.contains("_SERVICE_PORT") {
        return true;
    }
    if rest.ends_with("_PORT") && value.to_str().is_some_and(|value| value.contains("://")) {
        return true;
    }
    rest.split("_PORT_").nth(1).is_some_and(|tail| {
        let mut parts = tail.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(flags: &[(&str, &str)], env: &[(&str, &str)], file: &str) -> (Settings, Vec<Problem>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gateway.yaml");
        std::fs::write(&path, file).expect("written");
        let sources = Sources {
            flags: flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            environment: env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            file: Some(path),
        };
        let mut problems = Vec::new();
        let settings = merge(&sources, &mut problems);
        (settings, problems)
    }

    fn text<'a>(settings: &'a Settings, key: &str) -> &'a str {
        settings.values[key].text.expose()
    }

    #[test]
    fn flag_before_environment_before_file_before_default() {
        let file = "upstream: {url: 'http://file', credential: impersonate}\ntokens: {foreign: reject}\n";
        let env = [("TIMBR_GATEWAY_UPSTREAM_URL", "http://env"), ("TIMBR_GATEWAY_TOKENS_FOREIGN", "forward")];
        let (settings, problems) = merged(&[("upstream.url", "http://flag")], &env, file);
        assert_eq!(problems, []);
        assert_eq!(text(&settings, "upstream.url"), "http://flag");
        assert_eq!(text(&settings, "tokens.foreign"), "forward");
        assert_eq!(text(&settings, "upstream.credential"), "impersonate");
        assert_eq!(text(&settings, "tokens.ttl"), "24h");
        assert_eq!(settings.values["tokens.ttl"].origin, ValueOrigin::Default);
    }

    #[test]
    fn unknown_names_are_rejected_with_a_suggestion() {
        for (name, meant) in [
            ("timbr_gateway_tokens_foreign", "TIMBR_GATEWAY_TOKENS_FOREIGN"),
            ("timbr-gateway-tokens-foreign", "TIMBR_GATEWAY_TOKENS_FOREIGN"),
            ("TIMBR_GATEWAY_API_AUTH_SALT", "API_AUTH_SALT"),
            ("api_auth_salt", "API_AUTH_SALT"),
        ] {
            let (_, problems) = merged(&[], &[(name, "reject")], "");
            assert_eq!(problems, [Problem::new(name, format!("unknown variable; did you mean {meant}?"))]);
        }
        let env = [("TIMBR_GATEWAY_TOKEN_FOREIGN", "reject"), ("TIMBR_GATEWAY_NONSENSE_WHATEVER", "1")];
        let (_, problems) = merged(&[], &env, "tokens: {foreing: reject}\nnothing: 1\n");
        let all = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert_eq!(problems.len(), 4, "{all}");
        assert!(
            all.contains("TIMBR_GATEWAY_TOKEN_FOREIGN: unknown variable; did you mean TIMBR_GATEWAY_TOKENS_FOREIGN?"),
            "{all}"
        );
        assert!(all.contains("tokens.foreing: unknown key; did you mean tokens.foreign?"), "{all}");
        for (file, meant) in [
            ("keys_file: x", "tokens.keys_file"),
            ("auth: {keys_file: x}", "tokens.keys_file"),
            ("upstream_url: x", "upstream.url"),
            ("upstreamUrl: x", "upstream.url"),
            ("listen: {htpp: x}", "listen.http"),
            ("TIMBR_GATEWAY_TOKENS_TTL: 1h", "tokens.ttl"),
        ] {
            let (_, problems) = merged(&[], &[], file);
            let problem = problems[0].to_string();
            assert!(problem.ends_with(&format!("unknown key; did you mean {meant}?")), "{file}: {problem}");
        }
    }

    #[test]
    fn no_unrelated_name_is_suggested() {
        for file in ["x: {a: 1}", "data: {a: 1}", "upstream: {tml: 1}"] {
            let (_, problems) = merged(&[], &[], file);
            assert!(problems[0].message.ends_with("; see `timbr-gateway serve --help`"), "{file}: {problems:?}");
        }
        let (_, problems) = merged(&[], &[], "tokens:\n\u{a0}ttl: 1h\n");
        assert!(problems[0].message.contains("a space of a web page"), "{problems:?}");
    }

    #[test]
    fn variables_of_kubernetes_services_are_ignored() {
        let env = [
            ("TIMBR_GATEWAY_SERVICE_HOST", "10.0.0.1"),
            ("TIMBR_GATEWAY_SERVICE_PORT", "443"),
            ("TIMBR_GATEWAY_SERVICE_PORT_HTTPS", "443"),
            ("TIMBR_GATEWAY_PORT", "tcp://10.0.0.1:443"),
            ("TIMBR_GATEWAY_PORT_443_TCP", "tcp://10.0.0.1:443"),
            ("TIMBR_GATEWAY_PORT_443_TCP_ADDR", "10.0.0.1"),
            ("TIMBR_GATEWAY_ADMIN_SERVICE_HOST", "10.0.0.2"),
            ("TIMBR_GATEWAY_ADMIN_PORT_9180_TCP_PROTO", "tcp"),
        ];
        assert_eq!(merged(&[], &env, "").1, []);
        let ours = [("TIMBR_GATEWAY_LISTEN_PORT", "8080")];
        assert_eq!(merged(&[], &ours, "").1.len(), 1, "a misspelt variable is reported");
    }

    #[test]
    fn secrets_come_from_a_value_or_a_file_but_not_both() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("salt");
        std::fs::write(&path, "salt-of-the-file\n").expect("written");
        let path = path.to_str().expect("utf-8");
        let (settings, problems) = merged(&[], &[("API_AUTH_SALT_FILE", path)], "api_auth_salt: other\n");
        assert_eq!(problems, []);
        assert_eq!(text(&settings, "api_auth_salt"), "salt-of-the-file");

        let (_, problems) = merged(&[], &[("API_AUTH_SALT_FILE", path), ("API_AUTH_SALT", "x")], "");
        assert!(problems[0].to_string().contains("keep one of them"), "{problems:?}");
        let (_, problems) = merged(&[], &[], "api_auth_salt: x\napi_auth_salt_file: y\n");
        let expected = "gateway.yaml has both api_auth_salt and api_auth_salt_file; keep one of them";
        assert!(problems[0].message.ends_with(expected), "{problems:?}");
        let (_, problems) = merged(&[], &[("API_AUTH_SALT_FILE", "/nonexistent")], "");
        assert!(problems[0].to_string().contains("named by variable API_AUTH_SALT_FILE"), "{problems:?}");
        assert!(!problems[0].to_string().contains("/nonexistent"), "{problems:?}");
        let missing = format!("{path}.missing");
        let (_, problems) = merged(&[], &[("API_AUTH_SALT_FILE", missing.as_str())], "");
        assert!(problems[0].to_string().contains(&missing), "{problems:?}");
        let (_, problems) = merged(&[], &[], "tokns: {ttl: 1h}\n");
        assert!(
            problems.iter().any(|one| one.to_string() == "tokns: unknown section; did you mean tokens?"),
            "{problems:?}"
        );
    }

    #[test]
    fn problems_name_the_flag_or_the_variable_of_the_value() {
        let env = [("TIMBR_GATEWAY_TOKENS_TTL", "soon"), ("TIMBR_GATEWAY_UPSTREAMS", "[]")];
        let (settings, _) = merged(&[("log.level", "loud")], &env, "listen: {http: '8080'}\n");
        let keys = ["tokens.ttl", "upstreams[0].url", "log.level", "listen.http", "drain.delay", "TIMBR_GATEWAY_X"];
        let mut problems = keys.map(|key| Problem::new(key, "is wrong"));
        settings.add_origins(&mut problems);
        let expected = [
            "tokens.ttl: is wrong (variable TIMBR_GATEWAY_TOKENS_TTL)",
            "upstreams[0].url: is wrong (variable TIMBR_GATEWAY_UPSTREAMS)",
            "log.level: is wrong (flag --log-level)",
            "listen.http: is wrong",
            "drain.delay: is wrong",
            "TIMBR_GATEWAY_X: is wrong",
        ];
        assert_eq!(problems.map(|problem| problem.to_string()), expected);
    }

    #[test]
    fn text_that_looks_like_a_number_must_be_quoted() {
        let (_, problems) = merged(&[], &[], "upstream: {api_key: 0123}\ntimeouts: {idle: 75}\n");
        let all = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(all.contains("upstream.api_key: must be text; put it in quotes"), "{all}");
        assert!(all.contains("timeouts.idle: needs a unit"), "{all}");
        let file = "log: {access: 1}\nlisten: {http: 8080}\nworkers: true\ntls: {certificates: {cert_file: x}}\n";
        let (settings, problems) = merged(&[], &[], file);
        assert_eq!(problems, [Problem::new("tls.certificates", "must be a list, not a group of keys")]);
        for (key, read) in [("log.access", "1"), ("listen.http", "8080"), ("workers", "true")] {
            assert_eq!(text(&settings, key), read, "the parser of the option says what is wrong");
        }
    }

    #[test]
    fn empty_variables_are_not_set() {
        let (settings, problems) = merged(&[], &[("TIMBR_GATEWAY_LISTEN_HTTP", "")], "");
        assert_eq!(problems, []);
        assert_eq!(text(&settings, "listen.http"), "off");
    }
}
