"""`langchain_timbr.kbclient.KBClient` 6.4.1 as published."""

import pytest

from support.langchain import kbclient
from support.processes import free_port


def client(gateway, token):
    return kbclient().KBClient(gateway.url, token, verify_ssl=gateway.ca, max_retries=0)


def test_a_search_finds_its_examples_over_one_session(gateway, arrived):
    searching = client(gateway, gateway.token())
    for question in ("Who are our customers?", "And who else?"):
        result = searching.search(question, ["kb"])
        assert (result.is_high_confidence, result.top.query) == (True, "SELECT name FROM customer")
    assert [seen["user"] for seen in arrived()] == ["alice", "alice"]


def test_an_unknown_key_is_an_authentication_error_with_the_gateways_message(gateway):
    with pytest.raises(kbclient().KBAuthError, match="The `x-api-key` is not valid") as raised:
        client(gateway, "tk_wrong").search("Who?", ["kb"])
    assert raised.value.status_code == 401


def test_an_outage_is_a_server_error_with_the_gateways_message(setup):
    gateway = setup.gateway(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(kbclient().KBServerError, match="backend cannot be reached") as raised:
        client(gateway, gateway.token()).search("Who?", ["kb"])
    assert raised.value.status_code == 502
