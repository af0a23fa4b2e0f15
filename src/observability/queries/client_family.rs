//! The kind of client, from its `User-Agent`: a bounded set of words, so that lists and logs can be grouped by it.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// A part of a `User-Agent` in lower case, and the family. The first one that matches decides, so the special ones come
/// before the libraries that they use.
const FAMILIES: [(&str, &str); 26] = [
    ("timbr-gateway", "timbr-gateway"),
    ("langchain", "langchain"),
    ("pytimbr", "pytimbr"),
    ("pyhive", "pyhive"),
    ("powerbi", "power-bi"),
    ("mashup", "power-bi"),
    ("tableau", "tableau"),
    ("msolap", "excel"),
    ("excel", "excel"),
    ("odbc", "odbc"),
    ("jdbc", "jdbc"),
    ("java/thttpclient", "jdbc"),
    ("python/thttpclient", "python-thrift"),
    ("python-requests", "python-requests"),
    ("python", "python"),
    ("okhttp", "java"),
    ("java", "java"),
    ("apache-httpclient", "java"),
    ("axios", "node"),
    ("undici", "node"),
    ("node", "node"),
    ("go-http-client", "go"),
    ("curl", "curl"),
    ("postman", "postman"),
    ("grafana", "grafana"),
    ("mozilla", "browser"),
];

static FINDERS: LazyLock<[(Finder<'static>, &'static str); FAMILIES.len()]> =
    LazyLock::new(|| FAMILIES.map(|(word, family)| (Finder::new(word), family)));

/// Bytes of a `User-Agent` that are read.
const MAX_LENGTH: usize = 128;

/// The family of a client; `other` for an unknown one, `none` without a header.
pub fn client_family(user_agent: Option<&[u8]>) -> &'static str {
    let Some(text) = user_agent else { return "none" };
    let mut lower = [0; MAX_LENGTH];
    let length = text.len().min(MAX_LENGTH);
    lower[..length].copy_from_slice(&text[..length]);
    let lower = &mut lower[..length];
    lower.make_ascii_lowercase();
    FINDERS.iter().find(|(finder, _)| finder.find(lower).is_some()).map_or("other", |(_, family)| *family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_grouped_by_their_user_agent() {
        for (user_agent, family) in [
            ("python-requests/2.32.3", "python-requests"),
            ("Python/THttpClient", "python-thrift"),
            ("Java/THttpClient/HC", "jdbc"),
            ("Apache-HttpClient/4.5.14 (Java/17.0.9)", "java"),
            ("MicrosoftSparkODBCDriver/2.7.6.1014", "odbc"),
            ("Microsoft.Data.Mashup (https://go.microsoft.com/fwlink/?LinkID=304225)", "power-bi"),
            ("curl/8.5.0", "curl"),
            ("Mozilla/5.0 (X11; Linux x86_64)", "browser"),
            ("", "other"),
            ("<script>", "other"),
        ] {
            assert_eq!(client_family(Some(user_agent.as_bytes())), family, "{user_agent}");
        }
        assert_eq!(client_family(None), "none");
        let late = [&[b'x'; MAX_LENGTH][..], b"curl"].concat();
        assert_eq!(client_family(Some(&late)), "other", "only the beginning is read");
    }
}
