"""The published clients of Timbr and of MCP, in front of one stand-in for each of Timbr's services.

`docs/compatibility.md` lists them; the samples in `clients` show what a user writes.
"""

import functools
import http.server
import json
import subprocess
import threading
import urllib.parse

import pytest

from backend.keys import PLATFORM_KEYS
from support import clients

CONFIG = """
upstreams:
  - {{name: timbr-server, url: "{server}"}}
  - {{name: mcp, url: "{mcp}"}}
routes:
  - {{name: hive, enabled: true, upstream: timbr-server}}
  - {{name: agent-log, upstream: timbr-server}}
  - {{name: mcp, upstream: mcp}}
  - {{name: prompts, prefix: /timbr/api/llm_prompts/, content_types: [application/json], upstream: timbr-server}}
  - {{name: history, prefix: /timbr/api/fetch_conversation_history/, content_types: [application/json],
      upstream: timbr-server}}
  - {{name: api, cors: {{origins: ["{origin}"]}}}}
"""


@pytest.fixture(scope="module")
def standins(setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp("standins")
    started = [clients.StandIn(folder / script, script) for script in ("standin.py", "mcp_server.py")]
    for standin in started:
        setup.backends.append(standin)
        standin.wait_ready()
    return started


@pytest.fixture(scope="module")
def page():
    """The origin of a page that uses the API."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(clients.FOLDER))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def timbr_server(standins):
    return standins[0]


@pytest.fixture(scope="module")
def front(setup, backend, standins, page, tmp_path_factory):
    """A gateway in front of all services."""
    file = tmp_path_factory.mktemp("front") / "gateway.yaml"
    server, mcp = standins
    file.write_text(CONFIG.format(server=server.url, mcp=mcp.url, origin=page))
    return setup.gateway(backend.url, CONFIG=str(file))


@pytest.fixture(params=["token", "key"])
def key(request, front):
    """A token of the gateway, and a key of the platform."""
    key = front.token() if request.param == "token" else next(iter(PLATFORM_KEYS))
    front.secrets.add(key)
    return key


def test_sqlalchemy_by_pytimbr_sqla_and_pyhive(front, timbr_server, key):
    arrived = timbr_server.mark()
    rows = "['customer', 'order']"
    assert clients.run("sample_pytimbr_sqla.py", front, key) == [
        f"timbr+http {rows}", f"timbr+https {rows}", f"hive+http {rows}"]
    seen = arrived()
    assert {one["path"] for one in seen} == {"/timbr-server/", "/cliservice/"}
    assert {one["basic"] for one in seen} == {f"token@sales:{key}"}, "the ontology is nowhere else"
    assert {one["cookie"] for one in seen} == {None}, "the cookie of HiveServer2 is a credential"


def test_sqlalchemy_shows_why_a_request_is_rejected(front):
    with pytest.raises(AssertionError, match=r"TApplicationException: \{.*The `x-api-key` is not valid"):
        clients.run("sample_pytimbr_sqla.py", front, "tk_wrong")


def test_jdbc_by_pytimbr(front, timbr_server, key):
    arrived = timbr_server.mark()
    assert clients.run("sample_pytimbr_jdbc.py", front, key) == ["['customer', 'order']"] * 4
    seen = arrived()
    assert {(one["path"], one["basic"], one["cookie"]) for one in seen} == {
        (path, f"token:{key}", None) for path in ("/timbr-server", "/timbr-server/ontology/sales")}


def test_all_requests_of_langchain_timbr(front, timbr_server, backend, key):
    arrived, queries = timbr_server.mark(), backend.mark()
    printed = clients.run("sample_langchain_timbr.py", front, key)
    assert [line.split()[0] for line in printed] == ["query", "search", "history", "prompt"], printed
    assert "Ada Lovelace" in printed[0] and "Ada" in printed[2] and printed[3] == "prompt True", printed
    assert [one["path"] for one in arrived() if "log_agent" in one["path"]] == [
        f"/timbr-server/log_agent/{name}" for name in ("running", "running_update_step", "history")], "in this order"
    assert [one["path"] for one in arrived() if "log_benchmark" in one["path"]] == [
        f"/timbr-server/log_benchmark/{name}" for name in ("running", "running_update_completed", "history")]
    assert {one["basic"] for one in arrived() if "/log_" in one["path"]} == {f"token:{key}"}
    assert any(seen["path"] == "/timbr/api/kb/search" for seen in queries())


@pytest.mark.parametrize("header", ["x-api-key", "Authorization"])
def test_mcp_by_the_python_sdk(front, key, header):
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}
    assert clients.run("sample_mcp.py", front, key, MCP_HEADERS=json.dumps(headers)) == [
        "['query_data']", "rows for hi", "the server's message has arrived"]


@pytest.mark.parametrize("header", ["x-api-key", "Authorization"])
def test_mcp_by_the_typescript_sdk(front, key, header):
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}
    assert clients.run("sample_mcp.mjs", front, key, MCP_HEADERS=json.dumps(headers)) == [
        "query_data", "rows for hi", "ended true"]


def test_a_page_of_a_different_origin(front, key, page, tmp_path):
    """Chromium sends the preflight; the page reads the response and the reason of a rejection."""
    fragment = urllib.parse.quote(f"http://127.0.0.1:{front.http} {key}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
               "--virtual-time-budget=20000", "--dump-dom", f"{page}/page.html#{fragment}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
    assert "allowed 200; rejected 401 api_key_unknown; other-route TypeError" in shown, shown
