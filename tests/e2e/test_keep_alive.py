"""gunicorn closes idle connections after two seconds. A request at that moment must neither fail nor arrive twice."""

import collections
import concurrent.futures
import time
import uuid

import requests

from support.gateway import JSON

CONNECTIONS = 40


def spaced_requests(gateway, spacings):
    """Sends a POST on each of many keep-alive connections, then one after each pause. Returns the sent ids and the failures.

    A pause is a range, over which the connections are spread. Each query takes 0.1 s, so that all are in flight at the same
    time and each uses its own connection to the backend, which is then idle for as long as the client's connection.
    """
    headers = {**JSON, "x-api-key": gateway.token()}
    sent, failed = [], []

    def post(session):
        identifier = f"{uuid.uuid4()}"
        sent.append(identifier)
        body = {"ontology_name": "sales", "query": f"/* sleep 0.1 */ SELECT '{identifier}' AS id"}
        try:
            response = session.post(f"{gateway.url}timbr/api/query/", json=body, timeout=30, headers=headers)
        except requests.RequestException as error:
            failed.append(error)
            return
        if (response.status_code, response.json()["data"]) != (200, [{"id": identifier}]):
            failed.append((response.status_code, response.json().get("reason"), response.text))

    def client(number):
        with requests.Session() as session:
            session.verify = gateway.ca
            post(session)
            for least, most in spacings:
                time.sleep(least + (most - least) * number / (CONNECTIONS - 1))
                post(session)

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as clients:
        list(clients.map(client, range(CONNECTIONS)))
    return sent, failed


def times_arrived(arrived):
    return collections.Counter(seen["text"].split("'")[1] for seen in arrived() if "AS id" in seen["text"])


def check(gateway, arrived, spacings):
    sent, failed = spaced_requests(gateway, spacings)
    print(f"{len(sent)} requests, {len(failed)} failed")
    assert failed == []
    assert len(sent) == CONNECTIONS * (1 + len(spacings))
    assert times_arrived(arrived) == collections.Counter(sent)


def test_requests_at_gunicorns_keep_alive_timeout(gateway, arrived):
    check(gateway, arrived, [(1.990, 2.010)] * 8)


def test_requests_at_the_pools_idle_timeout(gateway, arrived):
    check(gateway, arrived, [(1.450, 1.550)] * 5)


def test_a_pool_with_a_too_long_idle_timeout_sends_nothing_twice(setup, backend, arrived):
    """Misconfigured, so that the backend closes connections that the gateway reuses. The failure is reported, not retried."""
    gateway = setup.gateway(backend.url, UPSTREAM_IDLE_TIMEOUT="10s")
    sent, failed = spaced_requests(gateway, [(1.850, 2.050)] * 4)
    times = times_arrived(arrived)
    print(f"{len(sent)} requests, {len(failed)} failed on connections that the backend had closed")
    assert set(times.values()) == {1}
    assert {failure[:2] for failure in failed} <= {(502, "upstream_closed")}
    assert len(failed) <= len(sent) // 10
