//! Size limits of requests.

use super::{Site, between, said_no};

#[test]
fn heads_are_limited_in_number_and_size() {
    let (many, long) = ("x: y\r\n".repeat(101), format!("x: {}\r\n", "y".repeat(70_000)));
    let spread = (0..90).map(|n| format!("x{n}: {}\r\n", "y".repeat(1000))).collect::<String>();
    let folded = "cookie: a=b\r\n".repeat(4096);
    let headers = [many.as_bytes(), long.as_bytes(), spread.as_bytes(), folded.as_bytes()];
    Site::new(&[]).refuses(&[431], &between("GET @T HTTP/1.1\r\n@H", &headers, "\r\n"));
}

#[test]
fn an_endless_head_is_rejected() {
    let endless = "x: y\r\n".repeat(20_000);
    let line = format!("x: {}", "y".repeat(100_000));
    let headers = [endless.as_bytes(), line.as_bytes()];
    Site::new(&[]).refuses(&[431], &between("GET @T HTTP/1.1\r\n@H", &headers, ""));
}

#[test]
fn targets_are_limited() {
    let path = format!("/timbr/api/{}", "a".repeat(70_000));
    let query = format!("@T?{}", "a".repeat(70_000));
    let targets = [path.as_bytes(), query.as_bytes()];
    Site::new(&[]).refuses(&[414], &between("GET ", &targets, " HTTP/1.1\r\n@H\r\n"));
}

#[test]
fn methods_are_limited() {
    let method = "A".repeat(70_000);
    let methods = [method.as_bytes()];
    Site::new(&[]).refuses(&[400, 405, 414, 431, 501], &between("", &methods, " @T HTTP/1.1\r\n@H\r\n"));
}

/// Nothing is forwarded unchecked because of its size.
#[test]
fn bodies_are_limited() {
    let site = Site::new(&[("LIMITS_BODY", "1KiB")]);
    let large = "x".repeat(1025);
    let stated = format!("POST @T HTTP/1.1\r\n@HContent-Length: 1025\r\n\r\n{large}");
    site.refuses_by_policy(&[413], &[("stated", stated)]);
    let site = Site::new(&[("LIMITS_BODY", "1KiB")]);
    let huge = "POST @T HTTP/1.1\r\n@HContent-Length: 9999999999999999\r\n\r\nx";
    site.refuses(&[413], &[("far beyond", huge)]);
    let site = Site::new(&[("LIMITS_BODY", "1KiB")]);
    let head = "POST @T HTTP/1.1\r\n@HTransfer-Encoding: chunked\r\n\r\n";
    let one = format!("401\r\n{large}\r\n0\r\n\r\n");
    let many = format!("{}0\r\n\r\n", "1\r\nx\r\n".repeat(1025));
    // The end of these bodies is known, so the connection stays open; but not with a body that is too large.
    let bodies = [one.as_bytes(), many.as_bytes()];
    site.judge_each(&between(head, &bodies, ""), 2, |outcome| {
        said_no(outcome.responses.first().ok_or("no response")?, &[413])?;
        let whole = outcome.first.as_ref().is_some_and(|seen| seen.whole);
        (!whole).then_some(()).ok_or("it arrived as if complete".to_owned())
    });
    let site = Site::new(&[("LIMITS_BODY", "1KiB")]);
    let exact = format!("POST @T HTTP/1.1\r\n@HContent-Length: 1024\r\n\r\n{}", &large[1..]);
    site.serves(&large.as_bytes()[1..], &[("exactly at the limit", exact)]);
}
