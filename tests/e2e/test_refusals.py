"""What is refused, each with its own error, and that it never reaches the backend."""

import socket
import uuid

import pytest
import requests

from support.gateway import JSON

TEXT = {"Content-Type": "application/text"}


def refusal(answer):
    body = answer.json()
    assert body["status"] == "error" and body["data"].endswith("."), body
    assert body["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, body["reason"]


@pytest.mark.parametrize(("path", "headers", "keyed", "expected"), [
    ("timbr/api/query/", JSON, False, (401, "api_key_missing")),
    ("timbr/openapi/ontology/sales/query", TEXT, False, (401, "api_key_missing")),
    ("timbr/api/query/", TEXT, True, (415, "content_type_unsupported")),
    ("timbr/openapi/ontology/sales/query", {"Content-Type": "text/html"}, True, (415, "content_type_unsupported")),
    ("timbr/api/query/", {}, True, (400, "content_type_missing")),
    ("timbr/api/query/", {**JSON, "x_api_key": "tk_evil"}, True, (400, "field_ambiguous")),
    ("timbr/api/query/", {**JSON, "Connection": "x-api-key"}, True, (400, "connection_names_policy_field")),
    ("timbr/elsewhere/", JSON, True, (404, "not_found")),
    ("timbr/api/get_token", JSON, False, (401, "bearer_missing")),
])
def test_each_lack_has_its_own_answer_and_nothing_arrives(gateway, arrived, path, headers, keyed, expected):
    key = gateway.token() if keyed else None
    answer = gateway.send("POST", path, key, headers=headers, data=b"{}")
    assert refusal(answer) == expected
    assert arrived() == []


def test_a_bad_key_is_refused_and_its_request_never_arrives(gateway, arrived):
    key = f"tk_{uuid.uuid4().hex}"
    for _ in range(3):
        answer = gateway.send("POST", "timbr/api/query/", key, json={"query": "SELECT 1"})
        assert refusal(answer) == (401, "api_key_unknown")
    (question,) = arrived()
    assert (question["method"], question["path"]) == ("GET", "/timbr/api/get_ontologies/")


def test_two_keys_are_refused(gateway, arrived):
    head = (f"GET /timbr/api/get_ontologies/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"x-api-key: {gateway.token()}\r\nx-api-key: tk_other\r\nConnection: close\r\n\r\n")
    with socket.create_connection(("127.0.0.1", gateway.http), 10) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 400 ") and '"reason":"field_repeated"' in answer
    assert arrived() == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_get_token_is_a_post(gateway, method):
    answer = gateway.send(method, "timbr/api/get_token")
    assert (refusal(answer), answer.headers["Allow"]) == ((405, "method_not_allowed"), "POST")


def test_get_token_wants_json_and_a_good_bearer(gateway):
    good = gateway.get_token().request.headers["Authorization"]
    for headers, expected in [
        ({"Content-Type": "text/plain", "Authorization": good}, (415, "content_type_unsupported")),
        ({**JSON, "Authorization": good[:-6] + "AAAAA="}, (401, "bearer_invalid")),
        ({**JSON, "Authorization": "Basic YWxpY2U6eA=="}, (401, "bearer_missing")),
    ]:
        gateway.secrets |= {headers["Authorization"].split()[1]}
        answer = gateway.send("POST", "timbr/api/get_token", headers=headers)
        assert refusal(answer) == expected
        if expected[0] == 401:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


def test_a_refused_session_goes_on(gateway):
    with requests.Session() as session:
        session.verify = gateway.ca
        url = f"{gateway.url}timbr/api/query/"
        assert session.post(url, headers=JSON, json={"query": "x" * 1000}).status_code == 401
        key = {"x-api-key": gateway.token()}
        assert session.post(url, headers=key, json={"query": "SELECT 1"}).status_code == 200


def test_a_large_refused_upload_over_tls_gets_its_answer(gateway, arrived):
    """A client that writes its whole body before it reads must not be cut off by a reset."""
    for _ in range(5):
        answer = gateway.send("POST", "timbr/api/query/", data=b"x" * 20_000_000)
        assert refusal(answer) == (401, "api_key_missing")
    assert arrived() == []
