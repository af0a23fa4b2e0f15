//! Each byte that some parser ignores, at each position of a valid head.
//!
//! The body is a request. A parser that still reads the length skips the body; one that does not must reject
//! everything.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Site;
use crate::support::wire::Wire;

/// None of them is valid in a name: a header with a different name would not be an error.
const BYTES: &[u8] = b"\r\n\t \x0b\x0c\x00\x1f\x7f\x85\xa0,;\"(/@\\";

#[test]
fn no_byte_turns_a_body_into_a_request() {
    let site = Site::new(&[]);
    let body = site.fill(0, b"GET /timbr/api/within HTTP/1.1\r\n@H\r\n");
    let (mut heads, mut places) = (Vec::new(), 0);
    let length = format!("Content-Length: {}\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n".to_owned();
    let size = format!("{:x}\r\n", body.len());
    for (framing, before, after) in [(length, "", ""), (chunked, &*size, "\r\n0\r\n\r\n")] {
        let head = site.fill(0, format!("POST @T HTTP/1.1\r\n@H{framing}\r\n{before}").as_bytes());
        places = head.len().max(places);
        heads.push((head, after));
    }
    // The key is long, and its letters are equivalent for this test.
    let key = heads[0].0.windows(3).position(|three| three == b"tk_").expect("the key") + 3;
    let within_key = |place: usize| place > key && place < key + site.token.len() - 4;
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (place, byte) = (number / BYTES.len(), BYTES[number % BYTES.len()]);
            if place > places {
                return;
            }
            for (head, after) in heads.iter().filter(|(head, _)| place <= head.len() && !within_key(place)) {
                let (one, two) = head.split_at(place);
                let mut wire = Wire::connect(site.gateway.http());
                wire.send(&[one, &[byte], two, &body, after.as_bytes()].concat());
                wire.finish();
                wire.read_for(Duration::from_secs(2));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..super::AT_ONCE {
            scope.spawn(work);
        }
    });
    site.settle();
    assert_eq!(site.backend.violations(), [""; 0]);
    let within: Vec<_> = site.backend.seen().into_iter().filter(|seen| seen.target.contains("within")).collect();
    assert!(within.is_empty(), "{within:#?}");
}
