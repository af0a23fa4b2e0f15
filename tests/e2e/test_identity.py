"""The identity that the backend receives."""

import hashlib

import requests

from backend.keys import PLATFORM_KEYS, SERVICE_KEY
from support.gateway import JSON
from support.processes import wait_until

FORGED = ["x-forwarded-user", "X_Forwarded_User", "x-forwarded_user", "x-real-ip", "X_Real_IP", "x-forwarded-for",
          "x_forwarded_for", "forwarded", "remote-user", "Remote_User", "x-remote-user", "x-jwt-anything", "authorization"]
(PLATFORM_KEY,) = PLATFORM_KEYS
WHO = {"ontology_name": "sales", "query": "SELECT :user AS user"}


def user_of(gateway, key, **headers):
    response = gateway.send("POST", "timbr/api/query/", key, headers={**JSON, **headers}, json=WHO)
    assert response.status_code == 200, response.text
    return response.json()["data"][0]["user"]


def test_forward_sends_the_clients_key_and_the_users_name(gateway, arrived):
    key = gateway.token("alice")
    assert user_of(gateway, key) == "alice"
    (seen,) = arrived()
    assert seen["folded"]["HTTP_X_API_KEY"] == key
    assert seen["folded"]["HTTP_X_FORWARDED_PROTO"] == "https"
    assert seen["folded"]["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"


def test_identity_headers_of_the_client_are_not_forwarded(gateway, arrived):
    key = gateway.token("alice")
    for name in FORGED:
        assert user_of(gateway, key, **{name: "evil"}) == "alice", name
    assert len(arrived()) == len(FORGED)
    for seen in arrived():
        assert "evil" not in str(seen), seen


def test_without_the_gateway_the_backend_accepts_forged_headers(backend, arrived):
    """Without the gateway. Shows that the test above could fail."""
    for name in ("x-forwarded-user", "X_Forwarded_User"):
        response = requests.post(f"{backend.url}/timbr/api/query/", json=WHO, headers={"x-api-key": "any", name: "evil"})
        assert response.json()["data"] == [{"user": "evil"}]
    assert [seen["folded"]["HTTP_X_FORWARDED_USER"] for seen in arrived()] == ["evil", "evil"]


def test_impersonate_sends_the_service_key_and_not_the_clients_key(setup, backend, arrived):
    gateway = setup.gateway(backend.url, UPSTREAM_CREDENTIAL="impersonate", UPSTREAM_API_KEY=SERVICE_KEY,
                            AUTH_TRUST_SALT_HOLDER="true")
    key = gateway.token("carol")
    assert user_of(gateway, key) == "carol"
    rejected = gateway.send("POST", "timbr/api/query/", key, headers={**JSON, "x-api-impersonate-user": "root"}, json=WHO)
    assert (rejected.status_code, rejected.json()["reason"]) == (403, "impersonation_denied")
    (seen,) = arrived()
    assert seen["folded"]["HTTP_X_API_KEY"] == SERVICE_KEY
    assert seen["folded"]["HTTP_X_API_IMPERSONATE_USER"] == "carol"
    assert key not in str(seen)


def test_a_platform_key_is_not_replaced_by_the_service_key(setup, backend, arrived):
    gateway = setup.gateway(backend.url, UPSTREAM_CREDENTIAL="impersonate", UPSTREAM_API_KEY=SERVICE_KEY,
                            AUTH_TRUST_SALT_HOLDER="true")
    assert user_of(gateway, PLATFORM_KEY) == "dora"
    assert SERVICE_KEY not in str(arrived())


def test_a_platform_key_is_verified_once(setup, backend, arrived):
    gateway = setup.gateway(backend.url)
    for _ in range(3):
        assert user_of(gateway, PLATFORM_KEY) == "dora"
    ours = [seen for seen in arrived() if seen["folded"]["HTTP_X_API_KEY"] == PLATFORM_KEY]
    assert [(seen["method"], seen["path"]) for seen in ours] == [
        ("GET", "/timbr/api/get_ontologies/"), *[("POST", "/timbr/api/query/")] * 3]
    (control,) = [seen for seen in arrived() if seen not in ours]
    assert (control["path"], control["user"]) == ("/timbr/api/get_ontologies/", None), "the backend must reject a random key"


def test_keys_of_the_keys_file_are_accepted(setup, backend, arrived, tmp_path):
    erins, doras = (hashlib.sha256(key).hexdigest() for key in (b"tk_long_lived", b"tk_of_the_gateway_alone"))
    keys = tmp_path / "keys"
    keys.write_text(f"# provisioned\nerin:{erins}\ndora:{doras}:{PLATFORM_KEY}\n")
    gateway = setup.gateway(backend.url, TOKENS_KEYS_FILE=keys, TOKENS_FOREIGN="reject")
    assert user_of(gateway, "tk_long_lived") == "erin"
    assert user_of(gateway, "tk_of_the_gateway_alone") == "dora"
    rejected = gateway.send("POST", "timbr/api/query/", PLATFORM_KEY, json=WHO)
    assert (rejected.status_code, rejected.json()["reason"]) == (401, "api_key_unknown")
    assert [seen["folded"]["HTTP_X_API_KEY"] for seen in arrived()] == ["tk_long_lived", PLATFORM_KEY]


def test_a_rule_lets_one_user_act_as_another_and_the_log_tells(setup, backend, arrived):
    rules = '[{users: "bi", act_as: ["*@example.com"]}]'
    gateway = setup.gateway(backend.url, UPSTREAM_CREDENTIAL="impersonate", UPSTREAM_API_KEY=SERVICE_KEY,
                            AUTH_TRUST_SALT_HOLDER="true", IMPERSONATION_RULES=rules, LOG_ACCESS="false", LOG_LEVEL="warn")
    key = gateway.token("bi")
    assert user_of(gateway, key, **{"x-api-impersonate-user": "carol@example.com"}) == "carol@example.com"
    rejected = gateway.send("POST", "timbr/api/query/", key, headers={**JSON, "x-api-impersonate-user": "root"}, json=WHO)
    assert (rejected.status_code, rejected.json()["reason"]) == (403, "impersonation_denied")
    assert len(arrived()) == 1

    def decisions():
        lines = [line for line in gateway.process.output.splitlines() if ' audit: ' in line and ' what="impersonation" ' in line]
        return lines if len(lines) == 2 else None

    allowed, denied = wait_until("both decisions are logged", decisions)
    assert 'decision="rule 0"' in allowed and 'user="bi"' in allowed and 'acts_as="carol@example.com"' in allowed
    assert 'decision="denied"' in denied and 'acts_as="root"' in denied
