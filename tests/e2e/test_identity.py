"""Who the backend is told that the caller is."""

import hashlib

from backend.keys import SERVICE_KEY
from support.gateway import JSON

FORGED = ["x-forwarded-user", "X_Forwarded_User", "x-forwarded_user", "x-real-ip", "X_Real_IP", "x-forwarded-for",
          "x_forwarded_for", "forwarded", "remote-user", "Remote_User", "x-jwt-token", "authorization"]
WHO = {"ontology_name": "sales", "query": "SELECT :user AS user"}


def user_of(gateway, key, **headers):
    answer = gateway.send("POST", "timbr/api/query/", key, headers={**JSON, **headers}, json=WHO)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["user"]


def test_forward_sends_the_clients_key_and_the_users_name(gateway, arrived):
    key = gateway.token("alice")
    assert user_of(gateway, key) == "alice"
    (seen,) = arrived()
    assert seen["folded"]["HTTP_X_API_KEY"] == key
    assert seen["folded"]["HTTP_X_FORWARDED_PROTO"] == "https"
    assert seen["folded"]["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"


def test_what_the_client_says_about_itself_never_arrives(gateway, arrived):
    key = gateway.token("alice")
    for name in FORGED:
        assert user_of(gateway, key, **{name: "evil"}) == "alice", name
    assert len(arrived()) == len(FORGED)
    for seen in arrived():
        assert "evil" not in str(seen), seen


def test_impersonate_sends_the_service_key_and_never_the_clients(setup, backend, arrived):
    gateway = setup.gateway(backend.url, UPSTREAM_CREDENTIAL="impersonate", UPSTREAM_API_KEY=SERVICE_KEY,
                            AUTH_TRUST_SALT_HOLDER="true")
    key = gateway.token("carol")
    assert user_of(gateway, key) == "carol"
    refused = gateway.send("POST", "timbr/api/query/", key, headers={**JSON, "x-api-impersonate-user": "root"}, json=WHO)
    assert (refused.status_code, refused.json()["reason"]) == (403, "impersonation_denied")
    (seen,) = arrived()
    assert seen["folded"]["HTTP_X_API_KEY"] == SERVICE_KEY
    assert key not in str(seen)


def test_a_platform_key_works_and_is_asked_about_once(setup, backend, arrived):
    gateway = setup.gateway(backend.url)
    for _ in range(3):
        assert user_of(gateway, "tk_platform_dora") == "dora"
    assert [seen["method"] for seen in arrived()] == ["GET", "POST", "POST", "POST"]


def test_keys_of_the_file_are_known(setup, backend, tmp_path):
    digest = hashlib.sha256(b"tk_long_lived").hexdigest()
    keys = tmp_path / "keys"
    keys.write_text(f"# provisioned\nerin:{digest}\n")
    gateway = setup.gateway(backend.url, TOKENS_KEYS_FILE=keys, TOKENS_FOREIGN="reject")
    assert user_of(gateway, "tk_long_lived") == "erin"
    assert gateway.send("POST", "timbr/api/query/", "tk_platform_dora", json=WHO).status_code == 401
