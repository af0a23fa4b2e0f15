"""Start without a backend, and graceful shutdown with queries in flight."""

import concurrent.futures

from support.processes import free_port, wait_until

SLOW = {"ontology_name": "sales", "query": "/* sleep 1.5 */ SELECT 1 AS one"}


def test_queries_in_flight_complete_during_a_drain(setup, backend, arrived):
    gateway = setup.gateway(backend.url)
    key = gateway.token()
    with concurrent.futures.ThreadPoolExecutor(10) as clients:
        queries = [clients.submit(gateway.send, "POST", "timbr/api/query/", key, json=SLOW) for _ in range(10)]
        wait_until("all queries have arrived", lambda: len(arrived()) == 10)
        gateway.process.terminate()
        wait_until("the gateway reports that it is not ready", lambda: gateway.readiness() == 503, timeout=1)
        assert [response.result().status_code for response in queries] == [200] * 10
    assert gateway.process.wait() == 0


def test_the_gateway_starts_before_the_backend(setup):
    port = free_port()
    gateway = setup.gateway(f"http://127.0.0.1:{port}")
    assert gateway.readiness() == 200
    key = gateway.token()
    rejected = gateway.send("GET", "timbr/api/get_ontologies/", key)
    assert (rejected.status_code, rejected.json()["reason"]) == (502, "upstream_unreachable")
    assert rejected.json()["status"] == "error" and rejected.json()["data"].endswith(".")
    assert rejected.headers["Retry-After"] == "1"
    setup.backend(port=port)
    assert gateway.send("GET", "timbr/api/get_ontologies/", key).status_code == 200
