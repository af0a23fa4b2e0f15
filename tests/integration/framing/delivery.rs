//! Where a request is cut into packets changes nothing.

use std::time::Duration;

use super::{CLOSING, Site, smuggled, target};
use crate::support::wire::Wire;

const CHUNKED: &[u8] = b"POST @T HTTP/1.1\r\n@HTransfer-Encoding: chunked\r\n\r\n\
    5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx: y\r\n\r\n";

fn assert_both_are_served(site: &Site, wire: &mut Wire, number: usize, body: &[u8]) {
    let answers = wire.read_answers(2, CLOSING).answers();
    let named: Vec<_> = answers.iter().map(|answer| answer.json()["target"].to_string()).collect();
    assert_eq!(named, [target(number), smuggled(number)].map(|target| format!("\"{target}\"")));
    assert_eq!(site.backend.find(&target(number)).expect("it arrived").body, body);
}

#[test]
fn byte_by_byte_it_is_the_same_request() {
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
fn cut_anywhere_it_is_the_same_request() {
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
            // Some parts shall meet in the gateway's buffer, and some shall not.
            std::thread::sleep(Duration::from_micros(random.u64(0..400)));
            rest = after;
        }
        assert_both_are_served(&site, &mut wire, number, b"hello world");
    }
    assert_eq!(site.backend.complaints(), [""; 0]);
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let site = Site::new(&[]);
    let mut wire = Wire::connect(site.gateway.http());
    let requests = |number| [site.fill(number, CHUNKED), site.follower(number)].concat();
    assert!(wire.send(&(0..20).flat_map(requests).collect::<Vec<_>>()));
    let answers = wire.read_answers(40, CLOSING).answers();
    let named: Vec<_> = answers.iter().map(|answer| answer.json()["target"].clone()).collect();
    let expected: Vec<_> = (0..20).flat_map(|number| [target(number), smuggled(number)]).collect();
    assert_eq!(named, expected);
}

/// An empty line before a request is forgiven (RFC 9112 section 2.2), or it is refused; it is nothing third.
#[test]
fn an_empty_line_before_a_request_changes_nothing() {
    let site = Site::new(&[]);
    site.judge_each(&[("CRLF", "\r\nGET @T HTTP/1.1\r\n@H\r\n")], 2, |outcome| {
        super::served(outcome, b"").or_else(|_| super::refused(outcome, &[400]))
    });
}
