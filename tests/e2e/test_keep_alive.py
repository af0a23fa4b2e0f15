"""gunicorn ends idle connections after two seconds. Requests that come just then must neither fail nor arrive twice."""

import collections
import concurrent.futures
import time
import uuid

import requests

from support.gateway import JSON

CONNECTIONS = 40


def spaced_requests(gateway, spacings):
    """On each of many keep-alive connections a POST, then one after each spacing. Returns ids sent, and what failed.

    A spacing is a pair of ends, over which the connections are spread. Each query takes a moment, so that all are in
    flight at once and each has a connection to the backend to itself, which then idles as long as the client's does.
    """
    headers = {**JSON, "x-api-key": gateway.token()}
    sent, failed = [], []

    def post(session):
        identifier = f"{uuid.uuid4()}"
        sent.append(identifier)
        body = {"ontology_name": "sales", "query": f"/* sleep 0.1 */ SELECT '{identifier}' AS id"}
        try:
            answer = session.post(f"{gateway.url}timbr/api/query/", json=body, timeout=30, headers=headers)
        except requests.RequestException as error:
            failed.append(error)
            return
        if (answer.status_code, answer.json()["data"]) != (200, [{"id": identifier}]):
            failed.append((answer.status_code, answer.json().get("reason"), answer.text))

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


def test_requests_spaced_like_gunicorns_keep_alive(gateway, arrived):
    check(gateway, arrived, [(1.990, 2.010)] * 8)


def test_requests_spaced_like_the_pools_own_idle_time(gateway, arrived):
    check(gateway, arrived, [(1.450, 1.550)] * 5)


def test_a_pool_that_keeps_connections_too_long_sends_nothing_twice(setup, backend, arrived):
    """Misconfigured, so that reuse meets the backend's close. A failure is then told, never hidden by a repetition."""
    gateway = setup.gateway(backend.url, UPSTREAM_IDLE_TIMEOUT="10s")
    sent, failed = spaced_requests(gateway, [(1.850, 2.050)] * 4)
    times = times_arrived(arrived)
    print(f"{len(sent)} requests, {len(failed)} failed on connections that the backend had closed")
    assert set(times.values()) == {1}
    assert {failure[:2] for failure in failed} <= {(502, "upstream_closed")}
    assert len(failed) <= len(sent) // 10
