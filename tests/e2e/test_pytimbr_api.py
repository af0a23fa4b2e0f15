"""`pytimbr_api` 2.2.0 as published."""

import uuid

import pytest
from pytimbr_api import timbr_http_connector as timbr

from support.processes import wait_until

SQL = "SELECT name, country FROM customer ORDER BY customer_id LIMIT 2"
ROWS = [{"name": "Ada Lovelace", "country": "United Kingdom"}, {"name": "Grace Hopper", "country": "United States"}]


def test_run_query_returns_rows(gateway, arrived):
    rows = timbr.run_query(url=gateway.url, ontology="sales", token=gateway.token(), query=SQL, verify_ssl=gateway.ca)
    assert rows == ROWS
    (seen,) = arrived()
    assert (seen["path"], seen["user"]) == ("/timbr/openapi/ontology/sales/query", "alice")
    assert seen["text"] == SQL


def test_run_query_forwards_its_options(gateway, arrived):
    rows = timbr.run_query(url=gateway.url, ontology="sales", token=gateway.token(), query=SQL, verify_ssl=gateway.ca,
                           datasource="warehouse", nested="true", additional_headers={"results_limit": "1"})
    assert rows == ROWS[:1]
    (seen,) = arrived()
    assert seen["path"].endswith("/query?datasource=warehouse")
    assert seen["folded"]["HTTP_NESTED"] == "true"


def test_an_async_query_is_polled_until_it_completes(gateway):
    common = {"url": gateway.url, "token": gateway.token(), "verify_ssl": gateway.ca}
    submitted = timbr.run_query(ontology="sales", query=SQL, is_async=True, **common)

    def completed():
        result = timbr.get_async_result(response_id=submitted["response_id"], **common)
        return result if result["status"] != "running" else None

    assert wait_until("the query is done", completed) == {
        "status": "completed", "response": ROWS, "original_status_code": 200}


def test_the_legacy_execute_query_returns_rows(gateway, arrived):
    response = timbr.executeQuery("localhost", gateway.https, "sales", gateway.token(), SQL, verify_ssl=gateway.ca)
    assert response == {"status": "success", "data": ROWS}
    assert [(seen["path"], seen["user"]) for seen in arrived()] == [("/timbr/api/query/", "alice")]


def test_the_legacy_advanced_query_returns_rows(gateway):
    rows = timbr.advancedQueryExecute("localhost", gateway.https, "sales", gateway.token(), SQL, verify_ssl=gateway.ca)
    assert rows == ROWS


def test_the_simple_legacy_query_uses_the_trust_store_of_the_environment(gateway, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", gateway.ca)
    assert timbr.simpleQueryExecution(gateway.url, "sales", gateway.token(), SQL) == ROWS


def test_the_certificate_is_verified(gateway):
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        timbr.run_query(url=gateway.url, ontology="sales", token=gateway.token(), query=SQL)


def test_the_client_shows_the_message_of_a_rejection(gateway, arrived):
    with pytest.raises(Exception, match="Error: .*x-api-key.*not valid.*api_key_unknown"):
        timbr.run_query(url=gateway.url, ontology="sales", token=f"tk_{uuid.uuid4()}", query=SQL, verify_ssl=gateway.ca)
    # The gateway may also check whether the backend rejects a random key.
    paths = [seen["path"] for seen in arrived()]
    assert 1 <= len(paths) <= 2 and set(paths) == {"/timbr/api/get_ontologies/"}, "only checks of keys"
