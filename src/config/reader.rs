//! Reads the values of options and collects every problem. Knows no relation between options.

use crate::config::options::{self, Key, OptionType};
use crate::config::sources::{Problem, Settings};

/// Builds a struct of values that are `Option`s. All of them are evaluated, so that every problem is reported, before
/// the first `None` becomes the result. Values that are in variables already follow after a semicolon.
macro_rules! complete {
    ($type:ident { $($field:ident: $value:expr),+ $(,)? $(; $($known:ident),+)? }) => {{
        $(let $field = $value;)+
        Some($type { $($field: $field?,)+ $($($known: $known?),+)? })
    }};
}
pub(super) use complete;

/// Reads settings and collects problems. A method that returns `None` has reported why, or the option has no value.
pub struct Reader<'a> {
    pub settings: &'a Settings,
    pub problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// The value of an option. A wrong one is reported, once.
    pub fn get<T: OptionType>(&mut self, option: &Key<T>) -> Option<T::Value> {
        let text = self.settings.values.get(option.key)?.text.expose();
        let checked = T::parse(text).and_then(|value| {
            let in_range = T::check(&value, option.range).map_err(|message| format!("{message}, not {text:?}"));
            in_range.map(|()| value)
        });
        checked.map_err(|message| self.problem_once(option.key, message)).ok()
    }

    /// Whether a source sets the option, or it has a default.
    pub fn is_set<T>(&self, option: &Key<T>) -> bool {
        self.settings.values.contains_key(option.key)
    }

    /// Reports the options among these that are set.
    pub fn reject_set(&mut self, keys: &[&'static str], message: &str) {
        for key in keys.iter().filter(|key| self.settings.values.contains_key(*key)) {
            self.problems.push(Problem::new(*key, message));
        }
    }

    /// Reports a problem of an option, or of an entry of its list.
    pub fn problem(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(subject, message));
    }

    /// Reports that a required value is missing, unless it may be in a file that could not be read.
    pub fn missing<T>(&mut self, key: &str, message: impl Into<String>) -> Option<T> {
        if !self.problems.iter().any(|problem| problem.subject == "config") {
            self.problem_once(key, message);
        }
        None
    }

    /// Checks all values, so that an invalid one that no reader reads is reported now and not when it first takes
    /// effect.
    pub fn check_values(&mut self) {
        for option in options::all() {
            if let Some(setting) = self.settings.values.get(option.key)
                && let Err(message) = (option.check)(setting.text.expose())
            {
                self.problem_once(option.key, message);
            }
        }
    }

    fn problem_once(&mut self, key: &str, message: impl Into<String>) {
        if !self.problems.iter().any(|problem| problem.subject == key) {
            self.problem(key, message);
        }
    }
}
