//! Every option of the gateway, declared once in `table`: flags, environment variables, keys of the file, JSON Schema
//! and documents are made from it, and readers refer to its typed keys. Knows nothing of relations between options.

mod table;
pub mod types;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

pub use table::*;
pub use types::{OptionType, Shape};

/// Prefix of the gateway's environment variables.
pub const PREFIX: &str = "TIMBR_GATEWAY_";

/// One option, independent of the type of its value.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Path in the file, with dots between the levels: `upstream.url`.
    pub key: &'static str,
    /// Form of the text.
    pub shape: Shape,
    /// The value if no source has one; `None`: there is none.
    pub default: Option<&'static str>,
    /// Smallest and largest value; `None`: the whole range of the type.
    pub range: Option<(&'static str, &'static str)>,
    /// One or two sentences for `--help` and the reference.
    pub help: &'static str,
    /// Parses a text without looking at the range.
    pub(super) check: fn(&str) -> Result<(), String>,
}

impl OptionSpec {
    /// The environment variable: `TIMBR_GATEWAY_UPSTREAM_URL`. The salt keeps the name that Timbr gave it.
    pub fn variable(&self) -> String {
        let name = self.key.replace('.', "_").to_uppercase();
        if self.key == GLOBAL.api_auth_salt.key { name } else { format!("{PREFIX}{name}") }
    }

    /// The flag without its dashes: `upstream-url`. Secrets have none, because every process of the machine can read
    /// arguments.
    pub fn flag(&self) -> Option<String> {
        (self.shape != Shape::Secret).then(|| flag_of(self.key))
    }

    /// For a secret: the key that names a file with the value.
    pub fn file_twin(&self) -> Option<String> {
        (self.shape == Shape::Secret).then(|| format!("{}_file", self.key))
    }

    /// The placeholder of the value in `--help`.
    pub fn value_name(&self) -> String {
        let name = match self.shape {
            Shape::Text => "TEXT",
            Shape::Url => "URL",
            Shape::Secret => "SECRET",
            Shape::Address => "ADDRESS:PORT",
            Shape::Path => "FILE",
            Shape::Duration => "DURATION",
            Shape::OptionalDuration => "DURATION|off",
            Shape::Count => "N",
            Shape::Limit => "N|0",
            Shape::Size => "SIZE",
            Shape::Bool => "true|false",
            Shape::Networks => "NETWORK,…",
            Shape::Urls => "URL,…",
            Shape::Names => "NAME,…",
            Shape::List => "LIST",
            Shape::Choice(words) => return words.join("|"),
        };
        name.to_owned()
    }
}

/// The flag for a key: dots and underscores become dashes.
pub fn flag_of(key: &str) -> String {
    key.replace(['.', '_'], "-")
}

/// The option with this key.
pub fn find(key: &str) -> Option<&'static OptionSpec> {
    all().find(|option| option.key == key)
}

/// An option with the type of its value. Readers get values by it, so that a misspelt key does not compile.
pub struct Key<T> {
    /// Path in the file; a field, so that constants can use it.
    pub key: &'static str,
    spec: OptionSpec,
    value: PhantomData<fn() -> T>,
}

impl<T: OptionType> Key<T> {
    const fn new(
        key: &'static str,
        default: Option<&'static str>,
        range: Option<(&'static str, &'static str)>,
        help: &'static str,
    ) -> Key<T> {
        let check = |text: &str| T::parse(text).map(drop);
        Key { key, spec: OptionSpec { key, shape: T::SHAPE, default, range, help, check }, value: PhantomData }
    }
}

impl<T> Deref for Key<T> {
    type Target = OptionSpec;

    fn deref(&self) -> &OptionSpec {
        &self.spec
    }
}

impl<T> fmt::Display for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec.key)
    }
}

/// Declares a group of options: the constant with its typed keys and, after `=>`, the struct that the group fills.
macro_rules! group {
    ($(#[$meta:meta])* $group:ident: $keys:ident = $prefix:literal => $options:ident {
        $($entries:tt)*
    }) => {
        group! { $group: $keys = $prefix { $($entries)* } }
        group! { @struct $(#[$meta])* $group => $options { $($entries)* } }
    };
    ($group:ident: $keys:ident = $prefix:literal {
        $($name:ident: $type:ty $(= $default:literal)? $([$min:literal..=$max:literal])?, $help:literal;)+
    }) => {
        #[doc = concat!("The typed keys of [`", stringify!($group), "`].")]
        pub struct $keys {
            $(#[doc = concat!("`", $prefix, stringify!($name), "`")] pub $name: Key<$type>,)+
        }

        impl $keys {
            const SPECS: &'static [OptionSpec] = &[$($group.$name.spec),+];
        }

        #[doc = concat!("The options `", $prefix, "*`.")]
        pub const $group: $keys = $keys {
            $($name: Key::new(
                concat!($prefix, stringify!($name)),
                group!(@optional $($default)?),
                group!(@optional $(($min, $max))?),
                $help,
            ),)+
        };
    };
    (@struct $(#[$meta:meta])* $group:ident => $options:ident {
        $($name:ident: $type:ty $(= $default:literal)? $([$min:literal..=$max:literal])?, $help:literal;)+
    }) => {
        $(#[$meta])*
        pub struct $options {
            $(#[doc = $help] pub $name: group!(@field $type $(, $default)?),)+
        }

        impl $options {
            pub(in crate::config) fn read(reader: &mut Reader<'_>) -> Option<$options> {
                $(let $name = reader.get(&$group.$name);)+
                Some($options { $($name: group!(@required $name $(, $default)?),)+ })
            }
        }
    };
    (@optional) => { None };
    (@optional $value:expr) => { Some($value) };
    (@field $type:ty) => { Option<<$type as crate::config::options::OptionType>::Value> };
    (@field $type:ty, $default:literal) => { <$type as crate::config::options::OptionType>::Value };
    (@required $name:ident) => { $name };
    (@required $name:ident, $default:literal) => { $name? };
}
use group;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_scripts_depend_on() {
        let variables: Vec<String> = all().map(OptionSpec::variable).collect();
        for name in [
            "API_AUTH_SALT",
            "TIMBR_GATEWAY_UPSTREAM_URL",
            "TIMBR_GATEWAY_LISTEN_HTTP",
            "TIMBR_GATEWAY_LISTEN_HTTPS",
            "TIMBR_GATEWAY_LISTEN_ADMIN",
            "TIMBR_GATEWAY_TLS_CERT_FILE",
            "TIMBR_GATEWAY_TLS_KEY_FILE",
            "TIMBR_GATEWAY_UPSTREAM_CREDENTIAL",
            "TIMBR_GATEWAY_UPSTREAM_API_KEY",
            "TIMBR_GATEWAY_AUTH_VERIFIER",
            "TIMBR_GATEWAY_TOKENS_FOREIGN",
            "TIMBR_GATEWAY_TOKENS_KEYS_FILE",
            "TIMBR_GATEWAY_WORKERS",
        ] {
            assert!(variables.iter().any(|variable| variable == name), "{name}");
        }
        assert_eq!(LISTEN.https.flag().as_deref(), Some("listen-https"));
    }

    #[test]
    fn secrets_have_a_file_twin_and_no_flag() {
        for option in all().filter(|option| option.shape == Shape::Secret) {
            assert_eq!(option.flag(), None, "{}", option.key);
            assert!(option.file_twin().is_some());
        }
    }

    #[test]
    fn defaults_and_ranges_are_valid() {
        for option in all() {
            let (min, max) = option.range.unzip();
            for text in [option.default, min, max].into_iter().flatten() {
                assert_eq!((option.check)(text), Ok(()), "{}: {text}", option.key);
            }
        }
    }

    #[test]
    fn keys_are_unique_and_no_key_is_a_group_of_another() {
        let keys: Vec<_> = all().map(|option| option.key).collect();
        for (index, key) in keys.iter().enumerate() {
            for other in &keys[index + 1..] {
                assert_ne!(key, other);
                assert!(!other.starts_with(&format!("{key}.")), "{key} / {other}");
            }
        }
    }
}
