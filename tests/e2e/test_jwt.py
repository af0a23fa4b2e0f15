"""JWTs of an identity provider, with the published client, and during a key rotation."""

import threading
import time
from functools import partial

import pytest
import requests
from pytimbr_api import timbr_http_connector as timbr

from backend.keys import PLATFORM_KEYS, SERVICE_KEY
from support.gateway import JSON
from support.idp import Idp
from support.langchain import langchain_module

SQL = "SELECT name FROM customer ORDER BY customer_id LIMIT 1"
ROWS = [{"name": "Ada Lovelace"}]


@pytest.fixture(scope="module")
def idp():
    idp = Idp()
    yield idp
    idp.stop()


@pytest.fixture(scope="module")
def gateway(setup, backend, idp):
    return setup.gateway(backend.url, **idp.options())


def test_the_published_client_queries_with_a_jwt(gateway, idp, arrived):
    token = idp.token("alice@example.com")
    gateway.secrets.add(token)
    rows = timbr.run_query(url=gateway.url, ontology="sales", token=token, query=SQL, is_jwt=True,
                           jwt_tenant_id="acme", verify_ssl=gateway.ca)
    assert rows == ROWS
    (seen,) = arrived()
    assert seen["folded"]["HTTP_X_JWT_TOKEN"] == token
    assert seen["folded"]["HTTP_X_JWT_TENANT_ID"] == "acme"
    assert (seen["user"], "HTTP_X_API_KEY" in seen["folded"]) == ("alice@example.com", False)


def test_impersonate_sends_the_service_key_instead_of_the_jwt(setup, backend, idp, arrived):
    gateway = setup.gateway(backend.url, **idp.options(), UPSTREAM_CREDENTIAL="impersonate",
                            UPSTREAM_API_KEY=SERVICE_KEY, AUTH_TRUST_SALT_HOLDER="true")
    token = idp.token("carol")
    gateway.secrets.add(token)
    assert timbr.run_query(url=gateway.url, ontology="sales", token=token, query=SQL, is_jwt=True,
                           verify_ssl=gateway.ca) == ROWS
    (seen,) = arrived()
    assert seen["user"] == "carol" and token not in str(seen)


def test_langchain_timbr_exchanges_a_jwt_without_receiving_the_permanent_key(setup, backend, idp, arrived):
    """`langchain_timbr.utils.timbr_auth` 6.4.1: `SHOW TOKEN` on `system_db`, then `x-api-key`."""
    permanent = next(key for key, user in PLATFORM_KEYS.items() if user == "dora")
    gateway = setup.gateway(backend.url, **idp.options(), UPSTREAM_CREDENTIAL="show-token")
    jwt = idp.token("dora")
    gateway.secrets.add(jwt)
    auth = langchain_module("utils.timbr_auth")
    token, is_jwt = auth.resolve_timbr_auth(gateway.url, jwt, True, verify_ssl=gateway.ca)
    assert (is_jwt, token.startswith("tk_"), token == permanent) == (False, True, False)
    gateway.secrets.add(token)
    rows = timbr.run_query(url=gateway.url, ontology="sales", token=token, query=SQL, verify_ssl=gateway.ca)
    assert rows == ROWS
    exchange, query = arrived()
    assert exchange["folded"]["HTTP_X_JWT_TOKEN"] == jwt, "by the gateway"
    assert (query["folded"]["HTTP_X_API_KEY"], query["user"]) == (permanent, "dora")


@pytest.mark.parametrize(("claims", "reason"), [
    ({"exp": 1_600_000_000}, "jwt_expired"), ({"aud": "other"}, "jwt_unacceptable"),
    ({"iss": "https://other"}, "jwt_invalid")])
def test_the_client_shows_the_message_of_a_rejection(gateway, idp, arrived, claims, reason):
    token = idp.token(**claims)
    gateway.secrets.add(token)
    with pytest.raises(Exception, match=f"Error: .*x-jwt-token.*{reason}"):
        timbr.run_query(url=gateway.url, ontology="sales", token=token, query=SQL, is_jwt=True, verify_ssl=gateway.ca)
    assert arrived() == []


def test_keys_rotate_under_load(gateway, idp):
    """Each request has a new token, signed with the newest key. A key that is newer than the last fetch may cause 503
    with `Retry-After`, which the clients obey, but never 401."""
    wrong, counts, stop = [], [], threading.Event()

    def work(number):
        count = 0
        with requests.Session() as session:
            session.verify = gateway.ca
            while not stop.is_set():
                token = idp.token(f"user-{number}-{count}")
                send = partial(session.get, f"{gateway.url}timbr/api/get_ontologies/",
                               headers={**JSON, "x-jwt-token": token})
                response = send()
                if response.status_code == 503 and response.json()["reason"] == "jwt_key_unknown":
                    time.sleep(int(response.headers["Retry-After"]))
                    response = send()
                if response.status_code != 200:
                    wrong.append(response.text)
                count += 1
        counts.append(count)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    before = idp.fetched
    for _ in range(6):
        time.sleep(1.5)
        idp.rotate()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(counts) > 100
    assert 6 <= idp.fetched - before <= 12, "about one fetch for each new key"
