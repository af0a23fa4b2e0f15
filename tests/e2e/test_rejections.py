"""Rejected requests: each has its own reason, and none reaches the backend."""

import socket
import uuid

import pytest
import requests

from support.gateway import JSON

TEXT = {"Content-Type": "application/text"}


def rejection(response):
    body = response.json()
    assert body["status"] == "error" and body["data"].endswith("."), body
    assert body["request_id"] == response.headers["x-request-id"]
    return response.status_code, body["reason"]


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
def test_each_fault_has_its_own_reason_and_is_not_forwarded(gateway, arrived, path, headers, keyed, expected):
    key = gateway.token() if keyed else None
    response = gateway.send("POST", path, key, headers=headers, data=b"{}")
    assert rejection(response) == expected
    assert arrived() == []


def test_an_unknown_key_is_rejected_and_its_request_is_not_forwarded(gateway, arrived):
    key = f"tk_{uuid.uuid4().hex}"
    for _ in range(3):
        response = gateway.send("POST", "timbr/api/query/", key, json={"query": "SELECT 1"})
        assert rejection(response) == (401, "api_key_unknown")
    (check,) = arrived()
    assert (check["method"], check["path"]) == ("GET", "/timbr/api/get_ontologies/")


def test_two_keys_are_rejected(gateway, arrived):
    head = (f"GET /timbr/api/get_ontologies/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"x-api-key: {gateway.token()}\r\nx-api-key: tk_other\r\nConnection: close\r\n\r\n")
    with socket.create_connection(("127.0.0.1", gateway.http), 10) as connection:
        connection.sendall(head.encode())
        response = connection.makefile("rb").read().decode()
    assert response.startswith("HTTP/1.1 400 ") and '"reason":"field_repeated"' in response
    assert arrived() == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_get_token_accepts_only_post(gateway, method):
    response = gateway.send(method, "timbr/api/get_token")
    assert (rejection(response), response.headers["Allow"]) == ((405, "method_not_allowed"), "POST")


def test_get_token_requires_json_and_a_valid_bearer(gateway):
    good = gateway.get_token().request.headers["Authorization"]
    for headers, expected in [
        ({"Content-Type": "text/plain", "Authorization": good}, (415, "content_type_unsupported")),
        ({**JSON, "Authorization": good[:-6] + "AAAAA="}, (401, "bearer_invalid")),
        ({**JSON, "Authorization": "Basic YWxpY2U6eA=="}, (401, "bearer_missing")),
    ]:
        gateway.secrets |= {headers["Authorization"].split()[1]}
        response = gateway.send("POST", "timbr/api/get_token", headers=headers)
        assert rejection(response) == expected
        if expected[0] == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer ")


def test_a_connection_stays_usable_after_a_rejection(gateway):
    with requests.Session() as session:
        session.verify = gateway.ca
        url = f"{gateway.url}timbr/api/query/"
        assert session.post(url, headers=JSON, json={"query": "x" * 1000}).status_code == 401
        key = {"x-api-key": gateway.token()}
        assert session.post(url, headers=key, json={"query": "SELECT 1"}).status_code == 200


def test_a_large_rejected_upload_over_tls_receives_its_response(gateway, arrived):
    """A client that writes its whole body before it reads must receive the response, not a reset."""
    for _ in range(5):
        response = gateway.send("POST", "timbr/api/query/", data=b"x" * 20_000_000)
        assert rejection(response) == (401, "api_key_missing")
    assert arrived() == []
