//! Reads PEM files as a whole, however their lines are written. It does not know what the sections contain.

use std::path::Path;

use zeroize::Zeroizing;

use crate::base::input_file;

/// The content of a PEM file.
pub struct PemText {
    /// The sections, each of their lines as a line of its own, without the text between them.
    pub pem: Zeroizing<Vec<u8>>,
    /// One of the sections is an encrypted private key.
    pub is_encrypted: bool,
    /// What the first section is, such as `EC PRIVATE KEY`.
    pub first_label: Option<String>,
}

impl PemText {
    /// Reads a file. The error is a sentence without the path.
    pub fn read(path: &Path) -> Result<PemText, String> {
        let bytes = input_file::read(path).map_err(|error| error.to_string())?;
        normalize(&bytes)
    }
}

/// Puts each section into the form that the parser understands. The parser silently skips what it does not: a section
/// behind a byte-order mark, with indentation, or on the line of another one.
///
/// SECURITY: a file is read as a whole or rejected, as a missing authority or intermediate certificate is noticed late.
fn normalize(bytes: &[u8]) -> Result<PemText, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("it is UTF-16; save it as plain text".to_owned());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // "-----BEGIN" in base64.
    if bytes.trim_ascii_start().starts_with(b"LS0tLS1CRUdJTi") {
        return Err("it was encoded in base64 once more; decode it: base64 -d FILE > NEW".to_owned());
    }
    if contains(bytes, b"-----\\n") {
        return Err("its line breaks are written as `\\n`; replace them by line breaks".to_owned());
    }
    let pem = Zeroizing::new(Vec::with_capacity(bytes.len() + 64));
    let mut text = PemText { pem, is_encrypted: false, first_label: None };
    let mut open: Option<&[u8]> = None;
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let failed = |what: &str| Err(format!("line {}: {what}", index + 1));
        let mut rest = line.trim_ascii();
        while !rest.is_empty() {
            let (part, after) = split_part(rest);
            rest = after.trim_ascii();
            match (Boundary::parse(part), open) {
                (Some(Boundary::Begin(_)), Some(_)) => return failed("BEGIN before the END of the previous section"),
                (Some(Boundary::Begin(label)), None) if label.ends_with(b" CERTIFICATE") => {
                    return failed(
                        "the section is not a plain CERTIFICATE; convert it: openssl x509 -in FILE -out NEW",
                    );
                }
                (Some(Boundary::Begin(b"X509 CRL")), None) => {
                    return failed("revocation lists (X509 CRL) are not supported; remove the section");
                }
                (Some(Boundary::Begin(label)), None) => {
                    text.is_encrypted |= label == b"ENCRYPTED PRIVATE KEY";
                    text.first_label.get_or_insert_with(|| String::from_utf8_lossy(label).escape_debug().to_string());
                    open = Some(label);
                }
                (Some(Boundary::End(label)), Some(begun)) if label == begun => open = None,
                (Some(Boundary::End(_)), _) => return failed("END without its BEGIN"),
                (None, _) if contains(part, b"-----BEGIN") || contains(part, b"-----END") => {
                    return failed("a BEGIN or END is incomplete");
                }
                // A header of RFC 1421, which only encrypted keys have.
                (None, Some(_)) if part.contains(&b':') => {
                    text.is_encrypted |= contains(part, b"ENCRYPTED");
                    continue;
                }
                (None, Some(_)) => {}
                // Text between sections.
                (None, None) => continue,
            }
            if Boundary::parse(part).is_some() {
                text.pem.extend_from_slice(part);
            } else {
                text.pem.extend(part.iter().filter(|byte| !byte.is_ascii_whitespace()));
            }
            text.pem.push(b'\n');
        }
    }
    if open.is_some() {
        return Err("the END of the last section is missing".to_owned());
    }
    Ok(text)
}

/// The first line of a section, or the last.
enum Boundary<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

impl<'a> Boundary<'a> {
    fn parse(part: &'a [u8]) -> Option<Boundary<'a>> {
        let inner = part.strip_prefix(b"-----")?.strip_suffix(b"-----")?;
        let begin = inner.strip_prefix(b"BEGIN ").map(Boundary::Begin);
        begin.or_else(|| inner.strip_prefix(b"END ").map(Boundary::End))
    }
}

/// Splits a line, which is not empty, after its first boundary, or before it if other text precedes it.
fn split_part(line: &[u8]) -> (&[u8], &[u8]) {
    let starts = [&b"-----BEGIN "[..], b"-----END "];
    let start = starts.iter().filter_map(|start| find(line, start)).min();
    match start {
        Some(0) => {
            let end = find(&line[5..], b"-----").map_or(line.len(), |length| 5 + length + 5);
            line.split_at(end)
        }
        Some(start) => line.split_at(start),
        None => (line, &[]),
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, part)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    find(text, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "AAAA\nBBBB\nCC==\n";

    fn section(label: &str) -> String {
        format!("-----BEGIN {label}-----\n{BODY}-----END {label}-----\n")
    }

    fn sections(text: &str) -> Result<String, String> {
        normalize(text.as_bytes()).map(|text| String::from_utf8(text.pem.to_vec()).expect("text"))
    }

    #[test]
    fn every_section_is_read_however_its_lines_are_written() {
        let one = section("CERTIFICATE");
        let both = one.repeat(2);
        for text in [
            both.clone(),
            both.replace('\n', "\r\n"),
            format!("\u{feff}{both}"),
            both.lines().map(|line| format!("  \t{line} \n")).collect(),
            // `cat one two`, where the first file has no line end.
            format!("{}{one}", one.trim_end()),
            both.replace('\n', ""),
            both.replace('\n', "\r"),
            both.replace('\n', " "),
            format!("subject: a\n{one}\nissuer=b\n\n{one}# the end"),
            both.replace("AAAA\n", "AAAA\n\n"),
        ] {
            let whole: String = sections(&text).expect(&text).split_whitespace().collect();
            assert_eq!(whole, both.split_whitespace().collect::<String>(), "{text:?}");
            let ends = sections(&text).expect("read").lines().filter(|line| line.starts_with("-----")).count();
            assert_eq!(ends, 4, "{text:?}");
        }
    }

    #[test]
    fn incomplete_files_are_rejected() {
        let one = section("CERTIFICATE");
        for (text, expected) in [
            (format!("{one}-----BEGIN CERTIFICATE-----\nAAAA\n"), "END of the last section is missing"),
            (format!("-----BEGIN CERTIFICATE-----\nAAAA\n{one}"), "line 3: BEGIN before the END"),
            (format!("{one}AAAA\n-----END CERTIFICATE-----\n"), "line 7: END without its BEGIN"),
            (one.replace("-----END CERT", "-----END X CERT"), "line 5: END without its BEGIN"),
            (one.replace("-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE---"), "a BEGIN or END is incomplete"),
            (section("TRUSTED CERTIFICATE"), "not a plain CERTIFICATE"),
            (format!("{one}{}", section("X509 CRL")), "line 6: revocation lists (X509 CRL) are not supported"),
        ] {
            let error = sections(&text).expect_err(&text);
            assert!(error.contains(expected), "{error}: {text}");
        }
        for (bytes, expected) in [
            (&b"\xff\xfe-\0-\0"[..], "UTF-16"),
            (b"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==", "base64 once more"),
            (b"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n", "line breaks"),
        ] {
            assert!(normalize(bytes).is_err_and(|error| error.contains(expected)), "{expected}");
        }
    }

    #[test]
    fn encrypted_keys_are_recognized() {
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                   -----END RSA PRIVATE KEY-----\n";
        for (text, is_encrypted) in [
            (section("ENCRYPTED PRIVATE KEY"), true),
            (old.to_owned(), true),
            (section("PRIVATE KEY"), false),
            (format!("Bag Attributes: ENCRYPTED\n{}", section("EC PRIVATE KEY")), false),
        ] {
            assert_eq!(normalize(text.as_bytes()).expect("complete").is_encrypted, is_encrypted, "{text}");
        }
    }
}
