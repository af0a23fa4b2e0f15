"""`auth.verifier=platform` and `upstream.credential=platform`, with a real Flask-AppBuilder login."""

import base64
import concurrent.futures
import os

import pytest

from support.gateway import JSON
from support.processes import wait_until

TEXT = {"Content-Type": "application/text"}
QUERY = "timbr/openapi/ontology/sales/query"
OPTIONS = {"AUTH_VERIFIER": "platform", "LIMITS_FAILURES_PER_USER": 0, "LIMITS_FAILURES_PER_ADDRESS": 0}


@pytest.fixture(scope="module")
def platform(setup):
    return setup.platform({"alice": "wonder:land & more", "bob": "büilder"})


@pytest.fixture(scope="module")
def gateway(setup, platform):
    return setup.gateway(platform.url, **OPTIONS, UPSTREAM_CREDENTIAL="platform")


def query(gateway, token, sql="SELECT 1"):
    return gateway.send("POST", QUERY, token, headers=TEXT, data=sql)


@pytest.mark.parametrize(("user", "password"), [("alice", "wonder:land & more"), ("bob", "büilder")])
def test_a_login_gets_the_users_own_key(gateway, platform, user, password):
    token = gateway.token(user, password)
    seen = platform.mark()
    for _ in range(3):
        assert query(gateway, token).json()[0]["user"] == user
    assert [entry["key"] for entry in seen()] == [platform.tokens[user]] * 3, "the user logs in only once"
    assert gateway.token(user, password) == token


@pytest.mark.parametrize(("user", "password"), [("alice", "wonder:land"), ("eve", "wonder:land & more"), ("bob", "no-such-password")])
def test_a_failed_login_gets_no_token(gateway, user, password):
    rejected = gateway.get_token(user, password)
    assert (rejected.status_code, rejected.json()["reason"]) == (401, "credentials_wrong")


def test_a_replaced_key_is_renewed_and_the_request_is_sent_again(gateway, platform):
    token = gateway.token("alice", "wonder:land & more")
    old = platform.tokens["alice"]
    new = platform.rotate("alice")
    seen = platform.mark()
    response = query(gateway, token, "SELECT 'once'")
    assert (response.status_code, response.json()[0]["user"]) == (200, "alice")
    queries = [(entry["key"], entry["text"]) for entry in seen() if entry["method"] == "POST"]
    assert queries == [(old, "SELECT 'once'"), (new, "SELECT 'once'")]
    seen = platform.mark()
    assert query(gateway, token).status_code == 200
    assert [entry["key"] for entry in seen()] == [new]


def test_concurrent_requests_renew_the_key_once(setup, platform):
    gateway = setup.gateway(platform.url, **OPTIONS, UPSTREAM_CREDENTIAL="platform")
    token = gateway.token("bob", "büilder")
    platform.rotate("bob")
    seen = platform.mark()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(lambda _: query(gateway, token).status_code, range(8)))
    assert responses == [200] * 8
    assert sum(entry["path"] == "/timbr/get_timbr_user_token/" for entry in seen()) == 1


def test_a_body_that_is_too_large_to_send_again_is_rejected(setup, platform):
    gateway = setup.gateway(platform.url, **OPTIONS, UPSTREAM_CREDENTIAL="platform")
    token = gateway.token("bob", "büilder")
    platform.rotate("bob")
    large = "SELECT " + "x" * (1 << 20)
    rejected = query(gateway, token, large)
    assert (rejected.status_code, rejected.json()["reason"]) == (503, "upstream_key_renewed")
    assert rejected.headers["Retry-After"] == "1"
    assert query(gateway, token, large).json()[0]["length"] == len(large)


def test_without_a_session_a_rejected_key_ends_the_token(setup, platform, tmp_path):
    options = {**OPTIONS, "UPSTREAM_CREDENTIAL": "platform", "STORE_KIND": "file", "STORE_PATH": str(tmp_path / "tokens"),
               "STORE_KEY": base64.b64encode(os.urandom(32)).decode()}
    gateway = setup.gateway(platform.url, **options)
    token = gateway.token("alice", "wonder:land & more")
    assert gateway.process.stop()
    # The session was known only to the process that made the token, so this process cannot renew the key.
    gateway = setup.gateway(platform.url, **options)
    assert query(gateway, token).status_code == 200
    platform.rotate("alice")
    rejected = query(gateway, token)
    assert (rejected.status_code, rejected.json()["reason"]) == (401, "token_revoked")
    assert query(gateway, gateway.token("alice", "wonder:land & more")).status_code == 200


def test_the_platform_as_verifier_only(setup, platform, backend, arrived):
    gateway = setup.gateway(backend.url, **OPTIONS, PLATFORM_URL=platform.url)
    token = gateway.token("alice", "wonder:land & more")
    assert gateway.get_token("alice", "no-such-password").status_code == 401
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200
    assert [seen["user"] for seen in arrived()] == ["alice"]
    assert platform.tokens["alice"] not in str(arrived())


def test_the_platform_spells_the_name(setup, platform, backend, arrived):
    """The platform ignores the case of a name. The backend, rules and limits must see one name."""
    gateway = setup.gateway(backend.url, **OPTIONS, PLATFORM_URL=platform.url, PLATFORM_USER_PATH="/timbr/me/",
                            UPSTREAM_CREDENTIAL="impersonate", UPSTREAM_API_KEY="tk_service")
    token = gateway.token("alice", "wonder:land & more")
    assert gateway.token("ALICE", "wonder:land & more") == token
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200
    assert [seen["user"] for seen in arrived()] == ["alice"]


def test_tokens_stay_valid_while_the_platform_is_down(setup, backend):
    platform = setup.platform({"alice": "wonder:land & more"})
    gateway = setup.gateway(backend.url, **OPTIONS, PLATFORM_URL=platform.url)
    token = gateway.token("alice", "wonder:land & more")
    assert platform.process.stop()
    for password in ("wonder:land & more", "no-such-password"):
        rejected = gateway.get_token("alice", password)
        assert (rejected.status_code, rejected.json()["reason"]) == (503, "verifier_unavailable")
        assert rejected.headers["Retry-After"] == "5"
    assert gateway.send("GET", "timbr/api/get_ontologies/", token, headers=JSON).status_code == 200
    platform.start()
    platform.wait_ready()
    wait_until("logins work again", lambda: gateway.get_token("alice", "wonder:land & more").status_code == 200)
