//! The split of a request into packets has no effect.

use std::time::Duration;

use super::{CLOSING, Site, smuggled, target};
use crate::support::wire::Wire;

const CHUNKED: &[u8] = b"POST @T HTTP/1.1\r\n@HTransfer-Encoding: chunked\r\n\r\n\
    5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx: y\r\n\r\n";

fn assert_both_are_served(site: &Site, wire: &mut Wire, number: usize, body: &[u8]) {
    let responses = wire.read_responses(2, CLOSING).responses();
    let named: Vec<_> = responses.iter().map(|response| response.json()["target"].to_string()).collect();
    assert_eq!(named, [target(number), smuggled(number)].map(|target| format!("\"{target}\"")));
    assert_eq!(site.backend.find(&target(number)).expect("it arrived").body, body);
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let site = Site::new(&[]);
    let length = b"POST @T HTTP/1.1\r\n@HContent-Length: 11\r\n\r\nhello world";
    for (number, template) in [&length[..], CHUNKED].iter().enumerate() {
        let mut wire = Wire::connect(site.gateway.http());
        for byte in [site.fill(number, template), site.follower(number)].concat() {
            assert!(wire.send(&[byte]));
        }
        assert_both_are_served(&site, &mut wire, number, b"hello world");
    }
}

#[test]
fn a_request_may_be_split_anywhere() {
    let site = Site::new(&[]);
    for number in 0..60 {
        let mut random = fastrand::Rng::with_seed(number);
        let number = usize::try_from(number).expect("small");
        let mut wire = Wire::connect(site.gateway.http());
        let whole = [site.fill(number, CHUNKED), site.follower(number)].concat();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.usize(1..=rest.len().min(90)));
            assert!(wire.send(part));
            // Some parts should be combined in the gateway's buffer, and some should not.
            std::thread::sleep(Duration::from_micros(random.u64(0..400)));
            rest = after;
        }
        assert_both_are_served(&site, &mut wire, number, b"hello world");
    }
    assert_eq!(site.backend.violations(), [""; 0]);
}

#[test]
fn pipelined_requests_are_served_in_order() {
    let site = Site::new(&[]);
    let mut wire = Wire::connect(site.gateway.http());
    let requests = |number| [site.fill(number, CHUNKED), site.follower(number)].concat();
    assert!(wire.send(&(0..20).flat_map(requests).collect::<Vec<_>>()));
    let responses = wire.read_responses(40, CLOSING).responses();
    let named: Vec<_> = responses.iter().map(|response| response.json()["target"].clone()).collect();
    let expected: Vec<_> = (0..20).flat_map(|number| [target(number), smuggled(number)]).collect();
    assert_eq!(named, expected);
}

/// An empty line before a request is ignored (RFC 9112 section 2.2) or rejected.
#[test]
fn an_empty_line_before_a_request_is_ignored_or_rejected() {
    let site = Site::new(&[]);
    site.judge_each(&[("CRLF", "\r\nGET @T HTTP/1.1\r\n@H\r\n")], 2, |outcome| {
        super::served(outcome, b"").or_else(|_| super::refused(outcome, &[400]))
    });
}
