//! The values of options by their shape; what does not have it becomes a problem.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::secret::Secret;
use crate::config::options::{OPTIONS, Shape};
use crate::config::sources::{Problem, Settings};
use crate::config::{options, size};

/// Reads settings and collects what is wrong with them. A reader that returns `None` has told why, or the option has
/// neither value nor default.
pub struct Reader<'a> {
    pub settings: &'a Settings,
    pub problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }

    /// Tells that a required value is missing, unless it may well be there: in a file that could not be read.
    pub fn missing<T>(&mut self, key: &str, message: impl Into<String>) -> Option<T> {
        let unread = |problem: &Problem| problem.subject == "config" || problem.subject == key;
        if !self.problems.iter().any(unread) {
            self.problem(key, message);
        }
        None
    }

    /// Judges what nobody has read, because it has no use with the other options or because these are wrong. Who sets it
    /// hears of his mistake now, and not when he comes to use it.
    pub fn judge_the_unread(&mut self) {
        for option in OPTIONS {
            if self.problems.iter().any(|problem| problem.subject == option.key) {
                continue;
            }
            match option.shape {
                Shape::Address => drop(self.address(option.key)),
                Shape::Duration => drop(self.any_duration(option.key)),
                Shape::OptionalDuration => drop(self.optional_duration(option.key)),
                Shape::Count => drop(self.count(option.key)),
                Shape::Limit => drop(self.limit(option.key)),
                Shape::Size => drop(self.size(option.key)),
                Shape::Bool => drop(self.flag(option.key)),
                Shape::Choice(words) => {
                    if let Some(word) = self.text(option.key).filter(|word| !words.contains(&word.as_str())) {
                        let _: Option<()> = self.choice(option.key, &word);
                    }
                }
                Shape::Path => {
                    if self.text(option.key).is_some_and(|path| path.is_empty()) {
                        self.problem(option.key, "must name a file, or be left out");
                    }
                }
                Shape::Text
                | Shape::Url
                | Shape::Secret
                | Shape::Networks
                | Shape::Urls
                | Shape::List
                | Shape::Certificates => {}
            }
        }
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.settings.values.get(key).map(|setting| setting.text.expose().to_owned())
    }

    /// The value of a secret; unlike a text it is wiped when it is dropped.
    pub fn secret(&self, key: &str) -> Option<Secret> {
        self.settings.values.get(key).map(|setting| setting.text.clone())
    }

    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// Tells that `word` is none of the words of `key`.
    pub fn choice<T>(&mut self, key: &str, word: &str) -> Option<T> {
        let words = options::find(key).map(options::Opt::value_name);
        let words = words.unwrap_or_default().replace('|', ", ");
        self.problem(key, format!("must be one of {words}, not {word:?}"));
        None
    }

    pub fn address(&mut self, key: &str) -> Option<Option<SocketAddr>> {
        let text = self.text(key)?;
        if text == "off" {
            return Some(None);
        }
        if let Ok(address) = text.parse() {
            return Some(Some(address));
        }
        let message =
            format!("must be address:port, such as 0.0.0.0:8443 or [::]:8443, or off, not {text:?}");
        self.problem(key, message);
        None
    }

    pub fn count(&mut self, key: &str) -> Option<usize> {
        let text = self.text(key)?;
        match text.parse() {
            Ok(count) if count > 0 => Some(count),
            _ => {
                self.problem(key, format!("must be a whole number above zero, not {text:?}"));
                None
            }
        }
    }

    pub fn count_up_to(&mut self, key: &str, most: usize) -> Option<usize> {
        let count = self.count(key)?;
        if count > most {
            self.problem(key, format!("must be {most} at most, not {count}"));
            return None;
        }
        Some(count)
    }

    pub fn size_within(&mut self, key: &str, least: u64, most: u64) -> Option<u64> {
        let size = self.size(key)?;
        if !(least..=most).contains(&size) {
            let (least, most) = (size::show(least), size::show(most));
            self.problem(key, format!("must be between {least} and {most}, not {}", size::show(size)));
            return None;
        }
        Some(size)
    }

    pub fn limit(&mut self, key: &str) -> Option<u32> {
        let text = self.text(key)?;
        let limit = text.parse().ok();
        if limit.is_none() {
            self.problem(key, format!("must be a whole number, or 0 for no limit, not {text:?}"));
        }
        limit
    }

    pub fn flag(&mut self, key: &str) -> Option<bool> {
        match self.text(key)?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.problem(key, "must be true or false");
                None
            }
        }
    }

    pub fn size(&mut self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        let size = size::parse(&text);
        if size.is_none() {
            self.problem(
                key,
                format!("must be a size with its unit, such as 512KiB, 100MiB or 2GiB, not {text:?}"),
            );
        }
        size
    }

    pub fn optional_duration(&mut self, key: &str) -> Option<Option<Duration>> {
        match self.text(key)?.as_str() {
            "off" => Some(None),
            _ => self.duration(key).map(Some),
        }
    }

    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        let span = self.any_duration(key)?;
        if span.is_zero() {
            self.problem(key, "must be longer than nothing");
            return None;
        }
        Some(span)
    }

    pub fn any_duration(&mut self, key: &str) -> Option<Duration> {
        /// Longer spans would overflow the clock's arithmetic somewhere; nobody means them.
        const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
        let text = self.text(key)?;
        match humantime::parse_duration(&text) {
            Ok(span) if span <= LONGEST => Some(span),
            Ok(_) => {
                self.problem(key, format!("{text:?} is more than ten years"));
                None
            }
            Err(_) => {
                let message =
                    format!("must be a span with its unit, such as 30s, 10m, 1h or 1500ms, not {text:?}");
                self.problem(key, message);
                None
            }
        }
    }
}
