//! Reads a hidden field from an HTML form, and encodes form data. Just enough for a login form.

use crate::base::percent;

/// The value of the `<input>` with this name; `None` if the page has none.
pub fn hidden_field_value(page: &str, name: &str) -> Option<String> {
    let mut rest = page;
    while let Some(at) = rest.find("<input") {
        rest = &rest[at + "<input".len()..];
        let tag = &rest[..rest.find('>')?];
        if attribute(tag, "name") == Some(name) {
            return attribute(tag, "value").map(unescape_html);
        }
    }
    None
}

/// The value of an attribute of a tag.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = tag;
    while let Some(at) = rest.find('=') {
        let key = rest[..at].trim_end().rsplit([' ', '\t', '\n', '\r', '"', '\'', '/']).next()?;
        let value = rest[at + 1..].trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let (value, after) = match quote {
            Some(quote) => value[1..].split_once(quote)?,
            None => value.split_at(value.find(char::is_whitespace).unwrap_or(value.len())),
        };
        if key.eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
    None
}

fn unescape_html(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    named.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Encodes form data as `application/x-www-form-urlencoded`.
pub fn urlencode_form(fields: &[(&str, &str)]) -> String {
    // SECURITY: a value can be a password. A buffer that grows would leave a copy of it in memory.
    let capacity = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut text = String::with_capacity(capacity);
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        percent::encode_into(&mut text, value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_field_is_found_in_all_notations() {
        for page in [
            r#"<form><input id="csrf_token" name="csrf_token" type="hidden" value="a&amp;b"></form>"#,
            "<input name=other value=x><input value='a&amp;b' type=hidden name='csrf_token'/>",
            "<input type=\"text\" name=\"username\">\n<input\n  value = \"a&amp;b\"\n  NAME=\"csrf_token\"\n>",
        ] {
            assert_eq!(hidden_field_value(page, "csrf_token").as_deref(), Some("a&b"), "{page}");
        }
        for page in ["", "<input", "<input name=csrf_token>", "<input name=\"csrf_token\" value=\"", "csrf_token=a"] {
            assert_eq!(hidden_field_value(page, "csrf_token"), None, "{page}");
        }
    }

    #[test]
    fn form_data_is_escaped() {
        let fields = [("username", "alice b"), ("password", "a&b=c+é\"%")];
        assert_eq!(urlencode_form(&fields), "username=alice%20b&password=a%26b%3Dc%2B%C3%A9%22%25");
    }
}
