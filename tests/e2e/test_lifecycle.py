"""Starting before the backend, and ending with queries in flight."""

import concurrent.futures

from support.processes import free_port, wait_until

SLOW = {"ontology_name": "sales", "query": "/* sleep 1.5 */ SELECT 1 AS one"}


def test_queries_in_flight_are_finished(setup, backend, arrived):
    gateway = setup.gateway(backend.url)
    key = gateway.token()
    with concurrent.futures.ThreadPoolExecutor(10) as clients:
        asked = [clients.submit(gateway.send, "POST", "timbr/api/query/", key, json=SLOW) for _ in range(10)]
        wait_until("all queries have arrived", lambda: len(arrived()) == 10)
        gateway.process.ask_to_stop()
        wait_until("it tells that it is not ready any more", lambda: gateway.readiness() == 503, patience=1)
        assert [answer.result().status_code for answer in asked] == [200] * 10
    assert gateway.process.wait() == 0


def test_it_starts_without_the_backend_and_works_once_that_is_there(setup):
    port = free_port()
    gateway = setup.gateway(f"http://127.0.0.1:{port}")
    assert gateway.readiness() == 200
    key = gateway.token()
    refused = gateway.send("GET", "timbr/api/get_ontologies/", key)
    assert (refused.status_code, refused.json()["reason"]) == (502, "upstream_unreachable")
    assert refused.json()["status"] == "error" and refused.json()["data"].endswith(".")
    assert refused.headers["Retry-After"] == "1"
    setup.backend(port=port)
    assert gateway.send("GET", "timbr/api/get_ontologies/", key).status_code == 200
