//! What an option is: its names, and what its text must look like.

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Path in the file, dots between levels: `upstream.url`.
    pub key: &'static str,
    /// What its text must look like.
    pub shape: Shape,
    /// The value when nobody gives one; `None` if there is none.
    pub default: Option<&'static str>,
    /// One or two sentences for `--help` and the reference.
    pub help: &'static str,
}

/// What the text of an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Free text.
    Text,
    /// `http://host:port` or `https://host[:port]`.
    Url,
    /// Text that must not be shown. It has no flag, as arguments are visible to every process of the machine;
    /// its twin with `_file` has.
    Secret,
    /// `address:port`, or `off`.
    Address,
    /// A path of the file system.
    Path,
    /// A span of time with its unit: `30s`, `10m`, `1h 30m`, `1500ms`.
    Duration,
    /// A span of time, or `off`.
    OptionalDuration,
    /// A whole number above zero.
    Count,
    /// A whole number; zero switches off.
    Limit,
    /// A number of bytes with its unit: `512KiB`, `100MiB`, `2GiB`.
    Size,
    /// `true` or `false`.
    Bool,
    /// Networks and addresses with commas between them; in the file a list too.
    Networks,
    /// Addresses of servers with commas between them; in the file a list too.
    Urls,
    /// Groups of keys: YAML's `[{key: value, …}, …]`, in the file as a list.
    List,
    /// Certificates with their keys: YAML's `[{cert_file: …, key_file: …}]`, in the file as a list.
    Certificates,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Opt {
    /// The variable that sets it: `TIMBR_GATEWAY_UPSTREAM_URL`; the salt keeps the name that Timbr gave it.
    pub fn variable(&self) -> String {
        if self.key == API_AUTH_SALT {
            return "API_AUTH_SALT".to_owned();
        }
        format!("{PREFIX}{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The flag that sets it, without its dashes: `upstream-url`. Secrets have none.
    pub fn flag(&self) -> Option<String> {
        (self.shape != Shape::Secret).then(|| flag_of(self.key))
    }

    /// For a secret: the key of the option that names a file which holds it.
    pub fn file_twin(&self) -> Option<String> {
        (self.shape == Shape::Secret).then(|| format!("{}_file", self.key))
    }

    /// What `--help` writes for the value.
    pub fn value_name(&self) -> String {
        match self.shape {
            Shape::Text => "TEXT".to_owned(),
            Shape::Url => "URL".to_owned(),
            Shape::Secret => "SECRET".to_owned(),
            Shape::Address => "ADDRESS:PORT".to_owned(),
            Shape::Path => "FILE".to_owned(),
            Shape::Duration => "SPAN".to_owned(),
            Shape::OptionalDuration => "SPAN|off".to_owned(),
            Shape::Count => "N".to_owned(),
            Shape::Limit => "N|0".to_owned(),
            Shape::Size => "SIZE".to_owned(),
            Shape::Bool => "true|false".to_owned(),
            Shape::Networks => "NETWORK,…".to_owned(),
            Shape::Urls => "URL,…".to_owned(),
            Shape::List | Shape::Certificates => "LIST".to_owned(),
            Shape::Choice(words) => words.join("|"),
        }
    }
}

/// The flag for a key: dots and underscores become dashes.
pub fn flag_of(key: &str) -> String {
    key.replace(['.', '_'], "-")
}

/// What the gateway's own variables begin with.
pub const PREFIX: &str = "TIMBR_GATEWAY_";

/// Key of the salt.
pub const API_AUTH_SALT: &str = "api_auth_salt";
