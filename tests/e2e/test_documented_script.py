"""The documentation's script: a bearer made with `cryptography`, then plain `requests`."""

import base64
import subprocess

import pytest
import requests
from cryptography.fernet import Fernet

from support.gateway import JSON


def test_get_token_returns_exactly_the_documented_form(gateway, arrived):
    bearer = Fernet(gateway.salt).encrypt(base64.b64encode(b"alice:wonder:land"))
    response = requests.post(f"{gateway.url}timbr/api/get_token", verify=gateway.ca, timeout=30,
                           headers={"Content-Type": "application/json", "Authorization": b"Bearer " + bearer})
    assert response.status_code == 200
    token = response.json()["data"][0]
    assert response.text == f'{{"data":["{token}"],"status":"success"}}'
    assert token.startswith("tk_")
    assert response.headers["Cache-Control"] == "no-store"
    assert arrived() == []


def test_the_token_is_accepted_by_every_documented_endpoint(gateway, arrived):
    key = gateway.token()
    for method, path, body in [
        ("GET", "timbr/api/get_ontologies/", None),
        ("POST", "timbr/api/query/", {"ontology_name": "sales", "query": "SELECT name FROM customer"}),
        ("POST", "timbr/api/get_ontology/sales", None),
        ("POST", "timbr/api/create_ontology/", {"ontology_name": "made by a test"}),
        ("POST", "timbr/api/get_config/sales", None),
        ("POST", "timbr/api/clear_cache/sales", None),
        ("GET", "timbr/api/q/sales/concept/customer?country=Austria", None),
        ("GET", "timbr/api/q/sales/view/customer", None),
    ]:
        response = gateway.send(method, path, key, json=body)
        assert (response.status_code, response.json()["status"]) == (200, "success"), (path, response.text)
        assert response.headers["x-request-id"]
    assert {request["user"] for request in arrived()} == {"alice"}
    assert len(arrived()) == 8


def test_the_same_login_gets_the_same_token(gateway):
    first = gateway.token("alice")
    assert gateway.token("alice") == first
    assert gateway.token("alice", "through:the:looking-glass") != first
    assert gateway.token("bob") != first


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_scheme_case_and_trailing_slash_are_ignored(gateway, scheme, slash):
    authorization = gateway.get_token().request.headers["Authorization"].replace("Bearer", scheme)
    response = gateway.send("POST", f"timbr/api/get_token{slash}", headers={**JSON, "Authorization": authorization})
    assert response.status_code == 200


def test_both_salts_open_bearers_during_a_rotation(setup, backend):
    new, old = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    gateway = setup.gateway(backend.url, API_AUTH_SALT=f"{new},{old}")
    for salt, status in [(new, 200), (old, 200), (setup.salt, 401)]:
        assert gateway.get_token(salt=salt).status_code == status
    tokens = {gateway.get_token(salt=salt).json()["data"][0] for salt in (new, old)}
    assert len(tokens) == 2, "where no password is verified, the salt is the proof, and a token ends with it"


def test_a_verified_login_gets_the_same_token_with_either_salt(setup, backend, tmp_path):
    new, old = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    users = tmp_path / "users"
    subprocess.run(["htpasswd", "-c", "-b", "-B", "-C", "5", str(users), "alice", "wonder:land"], check=True, capture_output=True)
    gateway = setup.gateway(backend.url, API_AUTH_SALT=f"{new},{old}", AUTH_VERIFIER="users-file", AUTH_USERS_FILE=users)
    assert len({gateway.get_token(salt=salt).json()["data"][0] for salt in (new, old)}) == 1
