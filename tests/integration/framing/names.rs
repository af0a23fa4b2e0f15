//! Policy headers: repeated, in other spellings, or named by `Connection`.

use super::{Site, between};
use crate::support::frames::{END_HEADERS, END_STREAM, Frames, HEADERS, frame, good_head, header};

#[test]
fn connection_must_not_name_policy_headers() {
    let named: &[&[u8]] = &[
        b"x-api-key",
        b"X-Api-Key",
        b"authorization",
        b"content-type",
        b"content-length",
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-user",
        b"x-api-impersonate-user",
        b"x-request-id",
        b"close, x-api-key",
        b"close,x-api-key,",
        b"keep-alive\r\nConnection: x-api-key",
        b"x_api_key",
        b"x-api-key;q=1",
        b"a b",
        b"\"x-api-key\"",
    ];
    let cases = between("GET @T HTTP/1.1\r\n@HConnection: ", named, "\r\n\r\n");
    Site::new(&[]).refuses_by_policy(&[400], &cases);
}

#[test]
fn policy_headers_are_not_repeated() {
    let doubled: &[&[u8]] = &[
        b"@K@K",
        b"@Kx-api-key: bad\r\n",
        b"x-api-key: bad\r\n@K",
        b"@KX-API-KEY:\r\n",
        b"@Kauthorization: Bearer a\r\nauthorization: Bearer b\r\n",
        b"@Kcontent-type: application/json\r\n",
        b"@Kcontent-type: text/html\r\n",
        b"@Kx_api_key: bad\r\n",
        b"@KX_API_KEY: bad\r\n",
        b"x_api_key: bad\r\n@K",
        b"@Kx.api.key: bad\r\n",
        b"@Kx-api_key: bad\r\n",
        b"@Kx-jwt-token: a.b.c\r\n",
        b"x-jwt-token: a.b.c\r\n@K",
        b"@Kx_jwt_token: a.b.c\r\n",
        b"@KX-JWT_Token: a.b.c\r\n",
        b"@Kx_jwt_tenant_id: a\r\n",
        b"@Kx_api_impersonate_user: root\r\n",
        b"@Kcontent_type: text/html\r\n",
        b"@Kcontent_length: 5\r\n",
        b"@Kh_o_s_t: a\r\nAUTHORIZATION: a\r\nauthorization: b\r\n",
    ];
    let head = "GET @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n";
    Site::new(&[]).refuses_by_policy(&[400], &between(head, doubled, "\r\n"));
}

#[test]
fn a_list_of_keys_is_rejected() {
    let site = Site::new(&[]);
    let token = site.token.clone();
    let lists = [
        format!("{token},bad"),
        format!("bad,{token}"),
        format!("{token}, {token}"),
        format!("{token};x"),
        format!("\"{token}\""),
        format!("{token} {token}"),
        format!("Bearer {token}"),
    ];
    let lists: Vec<_> = lists.iter().map(String::as_bytes).collect();
    let head = "GET @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-api-key: ";
    site.refuses_by_policy(&[400, 401], &between(head, &lists, "\r\n\r\n"));
}

/// Identity headers never come from the client, and the target is only taken from the request line.
#[test]
fn identity_headers_of_the_client_are_not_forwarded() {
    let site = Site::new(&[]);
    let headers: &[&[u8]] = &[
        b"X-Original-URL: /mark",
        b"X-Rewrite-URL: /mark",
        b"X-Forwarded-Uri: /mark",
        b"X_Original_URL: /mark",
        b"X-Forwarded-User: mark",
        b"X_Forwarded_User: mark",
        b"X-Forwarded_User: mark",
        b"x_forwarded_proto: mark",
        b"X-Forwarded-For: mark",
        b"X_Real_IP: mark",
        b"X-HTTP-Method-Override: mark",
        b"Forwarded: for=mark",
        b"Remote-User: mark",
        b"remote_user: mark",
        b"X-JWT-Tenant: mark",
        b"X_Jwt-other: mark",
        b"Connection: x-mine\r\nX-Mine: mark",
        b"Proxy-Authorization: mark",
        b"Trailer: mark",
        b"TE: mark",
        b"Keep-Alive: mark",
    ];
    site.serves(b"", &between("GET @T HTTP/1.1\r\n@H", headers, "\r\n\r\n"));
    assert!(!site.backend.has_bytes("mark"));
    for seen in site.backend.seen() {
        for name in ["x-api-key", "x-forwarded-user", "x-forwarded-for", "x-forwarded-proto", "host"] {
            assert_eq!(seen.count(name), 1, "{name}: {seen:?}");
        }
    }
}

/// Without a key, such headers do not select a different path's policy.
#[test]
fn a_path_in_a_header_does_not_affect_policy() {
    let site = Site::new(&[]);
    let headers: &[&[u8]] = &[
        b"X-Original-URL: /timbr/api/get_token",
        b"X-Rewrite-URL: /timbr/api/get_token",
        b"X-Forwarded-Uri: /timbr/api/get_token",
        b"X-HTTP-Method-Override: OPTIONS",
    ];
    let head = "POST @T HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n";
    site.refuses_by_policy(&[401], &between(head, headers, "\r\n\r\n"));
}

/// HTTP/2 has no connection headers, and its own rules for names and values (RFC 9113 section 8.2).
#[test]
fn malformed_http2_headers_are_not_forwarded() {
    let site = Site::new(&[]);
    for (name, value) in [
        ("connection", &b"x-api-key"[..]),
        ("connection", b"keep-alive"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"close"),
        ("te", b"gzip"),
        ("", b"x"),
        ("X-Upper", b"x"),
        ("x y", b"x"),
        ("x:y", b"x"),
        ("x\r\ny", b"x"),
        ("x", b"a\0b"),
        ("x", b"a\r\nx-api-key: b"),
        ("x", b"a\nb"),
        (":path", b"/other"),
        (":unknown", b"x"),
        ("content-length", b"5"),
        ("content-length", b"+0"),
    ] {
        let mut client = Frames::connect(site.gateway.https(), site.gateway.certificate_pem());
        let mut block = good_head("GET", "/timbr/api/malformed", &site.token);
        block.extend(header(name, value));
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        client.wait_for(|client| client.is_reset(1) || client.status(1).is_some());
        assert!(
            client.is_reset(1) || client.status(1) == Some(400),
            "{name:?}: {:?}: {:?} {:?}",
            value.escape_ascii().to_string(),
            client.status(1),
            client.received
        );
    }
    assert!(!site.backend.has_bytes("malformed"), "{:?}", site.backend.seen());
}
