"""The system's `curl`, over HTTP/1.1 and HTTP/2."""

import hashlib
import json
import subprocess

import pytest

VERSIONS = pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])


def curl(gateway, *arguments):
    command = ["curl", "--disable", "--noproxy", "*", "--silent", "--show-error", "--cacert", gateway.ca, "--max-time", "30",
               "--write-out", "\n%{http_version} %{http_code}", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    body, _, last = output.rpartition("\n")
    version, status = last.split()
    return version, int(status), body


@VERSIONS
def test_token_and_query(gateway, option, version):
    authorization = gateway.get_token().request.headers["Authorization"]
    json_type = ("-H", "Content-Type: application/json")
    result = curl(gateway, option, "-X", "POST", f"{gateway.url}timbr/api/get_token", *json_type,
                  "-H", f"Authorization: {authorization}")
    assert result[:2] == (version, 200)
    token = json.loads(result[2])["data"][0]
    result = curl(gateway, option, f"{gateway.url}timbr/openapi/ontology/sales/query", "-H",
                  "Content-Type: application/text", "-H", f"x-api-key: {token}", "-d", "SELECT 1 AS one")
    assert (result[0], result[1], json.loads(result[2])) == (version, 200, [{"one": 1}])
    result = curl(gateway, option, f"{gateway.url}timbr/api/get_ontologies/", *json_type)
    assert (result[1], json.loads(result[2])["reason"]) == (401, "api_key_missing")


@VERSIONS
def test_two_keys_are_rejected_and_not_forwarded(gateway, arrived, option, version):
    result = curl(gateway, option, f"{gateway.url}timbr/api/get_ontologies/", "-H", "Content-Type: application/json",
                  "-H", f"x-api-key: {gateway.token()}", "-H", "X-API-Key: tk_platform_dora")
    assert (result[0], result[1], json.loads(result[2])["reason"]) == (version, 400, "field_repeated")
    assert arrived() == []


@VERSIONS
def test_a_client_that_is_still_sending_receives_the_rejection(gateway, option, version):
    """Some clients treat the reset of a stream that they are sending on as a failure."""
    command = ["curl", "--disable", "--noproxy", "*", "--silent", "--show-error", "--cacert", gateway.ca, "--max-time", "60", option,
               "--output", "/dev/null", "--write-out", "%{http_code}\n", "-H", "Content-Type: application/json",
               "--data-binary", "x" * 500, f"{gateway.url}timbr/api/query?n=[1-300]"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["401"] * 300, done.stderr


@VERSIONS
def test_a_large_upload_arrives_complete(gateway, tmp_path, option, version):
    body = tmp_path / "body"
    body.write_bytes(bytes(range(256)) * (20 << 12))
    result = curl(gateway, option, "-H", "Content-Type: application/json", "-H", f"x-api-key: {gateway.token()}",
                  "--data-binary", f"@{body}", f"{gateway.url}timbr/api/digest")
    assert result[:2] == (version, 200)
    assert json.loads(result[2])["data"]["sha256"] == hashlib.sha256(body.read_bytes()).hexdigest()


@VERSIONS
def test_a_large_response_arrives_complete(gateway, tmp_path, option, version):
    body = tmp_path / "body"
    result = curl(gateway, option, "-H", "Content-Type: application/json", "-H", f"x-api-key: {gateway.token()}",
                  "--output", str(body), f"{gateway.url}timbr/api/large/50")
    assert result[:2] == (version, 200)
    assert body.stat().st_size == 50 << 20


def test_a_large_rejected_upload_receives_its_response(gateway, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"x" * 5_000_000)
    result = curl(gateway, "--http1.1", "-H", "Content-Type: application/json", "--data-binary", f"@{body}",
                  f"{gateway.url}timbr/api/query/")
    assert (result[1], json.loads(result[2])["reason"]) == (401, "api_key_missing")
