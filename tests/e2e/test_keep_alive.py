"""gunicorn ends idle connections after two seconds. Requests that come just then must neither fail nor arrive twice."""

import collections
import threading
import time
import uuid

import requests

from support.gateway import JSON

CONNECTIONS = 40


def spaced_requests(gateway, key, spacings):
    """On each of many keep-alive connections, a POST after each spacing. Returns ids sent, and what went wrong."""
    sent, wrong = [], []

    def client(number):
        with requests.Session() as session:
            session.verify = gateway.ca
            for round_number, spacing in enumerate((0, *spacings)):
                # A few milliseconds apart from the others, so that the whole of the gap is met.
                time.sleep(spacing and spacing + 0.0005 * number)
                identifier = f"{uuid.uuid4()}"
                sent.append(identifier)
                body = {"ontology_name": "sales", "query": f"SELECT '{identifier}' AS id"}
                try:
                    answer = session.post(f"{gateway.url}timbr/api/query/", json=body, timeout=30,
                                          headers={**JSON, "x-api-key": key})
                    if answer.status_code != 200 or answer.json()["data"] != [{"id": identifier}]:
                        wrong.append((round_number, answer.status_code, answer.text))
                except requests.RequestException as error:
                    wrong.append((round_number, error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent, wrong


def check(gateway, arrived, spacings):
    sent, wrong = spaced_requests(gateway, gateway.token(), spacings)
    counts = collections.Counter(seen["text"].split("'")[1] for seen in arrived() if "AS id" in seen["text"])
    print(f"{len(sent)} requests, {len(wrong)} failed, {sum(n > 1 for n in counts.values())} arrived twice")
    assert wrong == []
    assert counts == collections.Counter(sent)


def test_requests_spaced_like_gunicorns_keep_alive(gateway, arrived):
    check(gateway, arrived, [1.990] * 8)


def test_requests_spaced_like_the_pools_own_idle_time(gateway, arrived):
    check(gateway, arrived, [1.490] * 4)


def test_even_a_pool_that_keeps_connections_too_long_sends_nothing_twice(setup, backend, arrived):
    """Misconfigured so that every reuse meets the backend's close. Here a failure is told, never hidden by a repeat."""
    gateway = setup.gateway(backend.url, UPSTREAM_IDLE_TIMEOUT="10s")
    sent, wrong = spaced_requests(gateway, gateway.token(), [1.990] * 4)
    counts = collections.Counter(seen["text"].split("'")[1] for seen in arrived() if "AS id" in seen["text"])
    assert max(counts.values()) == 1
    print(f"{len(sent)} requests, {len(wrong)} failed on connections that the backend had closed")
    assert len(wrong) <= len(sent) // 10, wrong[:3]
