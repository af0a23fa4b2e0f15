//! Types of option values: how the text of an option is parsed, and what its error says. Knows no option.

use std::net::{IpAddr, SocketAddr};
use std::num::IntErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

use crate::base::client_address;
use crate::base::glob::Glob;
use crate::base::secret::Secret;
use crate::config::file;
use crate::config::{ServerUrl, size, url};

/// The form of an option's text, for flags, the file, the JSON Schema and documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Free text.
    Text,
    /// `http://host:port`, `https://host[:port]` or `unix:/path`.
    Url,
    /// Text that is never shown.
    Secret,
    /// `address:port`, or `off`.
    Address,
    /// Path of a file.
    Path,
    /// A number with a unit: `30s`, `10m`, `1h 30m`, `1500ms`.
    Duration,
    /// A duration, or `off`.
    OptionalDuration,
    /// A whole number above zero.
    Count,
    /// A whole number; zero switches off.
    Limit,
    /// Bytes with a unit: `512KiB`, `100MiB`, `2GiB`.
    Size,
    /// `true` or `false`.
    Bool,
    /// Networks and addresses separated by commas; in the file also a list.
    Networks,
    /// URLs separated by commas; in the file also a list.
    Urls,
    /// Names of headers, or patterns of them, separated by commas; in the file also a list.
    Names,
    /// Groups of keys: `[{key: value, …}, …]` in YAML, in the file a list.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A type that the text of an option can be parsed to.
pub trait OptionType {
    /// The parsed value; usually the type itself.
    type Value;

    /// The form of the text.
    const SHAPE: Shape;

    /// Parses the text. The error reads as a sentence after the key: "must be …".
    fn parse(text: &str) -> Result<Self::Value, String>;

    /// Checks a parsed value against the range of the option.
    fn check(_value: &Self::Value, _range: Option<(&str, &str)>) -> Result<(), String> {
        Ok(())
    }
}

fn check_range<T: OptionType>(value: &T::Value, range: Option<(&str, &str)>) -> Result<(), String>
where
    T::Value: PartialOrd,
{
    let bound = |text| T::parse(text).expect("a test parses all ranges of the table");
    match range {
        Some((min, max)) if *value < bound(min) || *value > bound(max) => {
            Err(format!("must be between {min} and {max}"))
        }
        _ => Ok(()),
    }
}

impl OptionType for String {
    type Value = String;
    const SHAPE: Shape = Shape::Text;

    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

impl OptionType for Secret {
    type Value = Secret;
    const SHAPE: Shape = Shape::Secret;

    fn parse(text: &str) -> Result<Secret, String> {
        Ok(Secret::new(text.to_owned()))
    }
}

impl OptionType for PathBuf {
    type Value = PathBuf;
    const SHAPE: Shape = Shape::Path;

    fn parse(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err("must name a file, or be left out".to_owned()) } else { Ok(text.into()) }
    }
}

impl OptionType for bool {
    type Value = bool;
    const SHAPE: Shape = Shape::Bool;

    fn parse(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| {
            let meant = match text.to_ascii_lowercase().as_str() {
                "yes" | "y" | "on" | "1" | "true" => "; did you mean true?",
                "no" | "n" | "off" | "0" | "false" => "; did you mean false?",
                _ => "",
            };
            format!("must be true or false, not {text:?}{meant}")
        })
    }
}

impl OptionType for Option<SocketAddr> {
    type Value = Option<SocketAddr>;
    const SHAPE: Shape = Shape::Address;

    fn parse(text: &str) -> Result<Option<SocketAddr>, String> {
        match text {
            "off" => Ok(None),
            _ => text
                .parse()
                .map(Some)
                .map_err(|_| format!("must be address:port, such as 0.0.0.0:8443 or [::]:8443, or off, not {text:?}")),
        }
    }
}

impl OptionType for ServerUrl {
    type Value = ServerUrl;
    const SHAPE: Shape = Shape::Url;

    fn parse(text: &str) -> Result<ServerUrl, String> {
        url::parse_server(text)
    }
}

impl OptionType for Vec<ServerUrl> {
    type Value = Vec<ServerUrl>;
    const SHAPE: Shape = Shape::Urls;

    fn parse(text: &str) -> Result<Vec<ServerUrl>, String> {
        text.split(',').map(|url| url::parse_server(url.trim())).collect()
    }
}

impl OptionType for Vec<IpNet> {
    type Value = Vec<IpNet>;
    const SHAPE: Shape = Shape::Networks;

    fn parse(text: &str) -> Result<Vec<IpNet>, String> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(network).collect()
    }
}

/// SECURITY: 10.1.2.3/8 could mean the network or the address, so it is rejected.
fn network(text: &str) -> Result<IpNet, String> {
    if text == client_address::UNIX_TEXT {
        return Ok(client_address::UNIX_PEER.into());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    match text.parse::<IpNet>() {
        Ok(network) if network.addr() == network.network() => Ok(network),
        Ok(network) => {
            let (whole, address) = (network.trunc(), network.addr());
            Err(format!("must be networks or addresses, not {text:?}; did you mean {whole} or {address}?"))
        }
        Err(_) => Err(format!("must be networks or addresses, such as 10.0.0.0/8 or fd00::1, or unix:, not {text:?}")),
    }
}

/// Names of headers in lower case, with `*` for any characters.
impl OptionType for Vec<Glob> {
    type Value = Vec<Glob>;
    const SHAPE: Shape = Shape::Names;

    fn parse(text: &str) -> Result<Vec<Glob>, String> {
        text.split(',').map(|name| header_pattern(name.trim())).collect()
    }
}

fn header_pattern(name: &str) -> Result<Glob, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(format!("must be names of headers, such as x-user or x-sso-*, not {name:?}"));
    }
    Ok(Glob::new(name.to_ascii_lowercase()))
}

impl OptionType for Vec<Value> {
    type Value = Vec<Value>;
    const SHAPE: Shape = Shape::List;

    fn parse(text: &str) -> Result<Vec<Value>, String> {
        match file::parse(text) {
            Ok(Value::Array(items)) => Ok(items),
            _ => Err("must be a list of groups of keys in YAML: [{key: value, …}, …]".to_owned()),
        }
    }
}

/// A duration that may be zero.
pub struct DurationOrZero;

impl OptionType for DurationOrZero {
    type Value = Duration;
    const SHAPE: Shape = Shape::Duration;

    fn parse(text: &str) -> Result<Duration, String> {
        /// A longer one would overflow the arithmetic of clocks.
        const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= MAX => Ok(duration),
            Ok(_) => Err(format!("must be at most ten years, not {text:?}")),
            Err(_) => Err(format!("must be a duration with its unit, such as 30s, 10m, 1h or 1500ms, not {text:?}")),
        }
    }

    fn check(value: &Duration, range: Option<(&str, &str)>) -> Result<(), String> {
        check_range::<DurationOrZero>(value, range)
    }
}

impl OptionType for Duration {
    type Value = Duration;
    const SHAPE: Shape = Shape::Duration;

    fn parse(text: &str) -> Result<Duration, String> {
        DurationOrZero::parse(text)
    }

    fn check(value: &Duration, range: Option<(&str, &str)>) -> Result<(), String> {
        if value.is_zero() {
            return Err("must be longer than zero".to_owned());
        }
        DurationOrZero::check(value, range)
    }
}

impl OptionType for Option<Duration> {
    type Value = Option<Duration>;
    const SHAPE: Shape = Shape::OptionalDuration;

    fn parse(text: &str) -> Result<Option<Duration>, String> {
        if text == "off" { Ok(None) } else { Duration::parse(text).map(Some) }
    }

    fn check(value: &Option<Duration>, range: Option<(&str, &str)>) -> Result<(), String> {
        value.as_ref().map_or(Ok(()), |value| Duration::check(value, range))
    }
}

/// A whole number above zero, as a `T`.
pub struct Count<T = usize>(T);

impl<T: TryFrom<u64> + PartialOrd> OptionType for Count<T> {
    type Value = T;
    const SHAPE: Shape = Shape::Count;

    fn parse(text: &str) -> Result<T, String> {
        let too_large = || format!("is too large: {text}");
        match text.parse::<u64>() {
            Ok(count) if count > 0 => T::try_from(count).map_err(|_| too_large()),
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => Err(too_large()),
            _ => Err(format!("must be a whole number above zero, not {text:?}")),
        }
    }

    fn check(value: &T, range: Option<(&str, &str)>) -> Result<(), String> {
        check_range::<Count<T>>(value, range)
    }
}

/// A whole number of at most `u32::MAX`, as a `T`; zero means no limit.
pub struct Limit<T = u32>(T);

impl<T: TryFrom<u32>> OptionType for Limit<T> {
    type Value = T;
    const SHAPE: Shape = Shape::Limit;

    fn parse(text: &str) -> Result<T, String> {
        let limit = text.parse().ok().and_then(|limit: u32| T::try_from(limit).ok());
        limit.ok_or_else(|| match text.parse::<u32>() {
            Err(error) if *error.kind() == IntErrorKind::PosOverflow => format!("must be at most {}", u32::MAX),
            _ => format!("must be a whole number, or 0 for no limit, not {text:?}"),
        })
    }
}

/// A number of bytes, as a `T`.
pub struct Size<T = u64>(T);

impl<T: TryFrom<u64> + PartialOrd> OptionType for Size<T> {
    type Value = T;
    const SHAPE: Shape = Shape::Size;

    fn parse(text: &str) -> Result<T, String> {
        match size::parse(text) {
            Some(size) => T::try_from(size).map_err(|_| format!("is too large: {text}")),
            None => {
                let meant = size::suggest(text).map(|size| format!("; did you mean {size}?")).unwrap_or_default();
                Err(format!("must be a size with its unit, such as 512KiB, 100MiB or 2GiB, not {text:?}{meant}"))
            }
        }
    }

    fn check(value: &T, range: Option<(&str, &str)>) -> Result<(), String> {
        check_range::<Size<T>>(value, range)
    }
}
