"""The backend serves the path that the gateway checked."""

import requests

TEXT = {"Content-Type": "application/text"}
# The gateway checks this as a path of the openapi route, which accepts text. If a header set SCRIPT_NAME to the first
# segments, gunicorn would pass the rest to the application: a path of the api route, which accepts only JSON.
SCRIPT = "/timbr/openapi/x"
PATH = f"{SCRIPT}/timbr/api/get_ontologies/"
NAMES = ["SCRIPT_NAME", "Script_Name", "script-name", "PATH_INFO", "path-info", "X-Script-Name", "X-Forwarded-Prefix",
         "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Original-Uri"]


def test_headers_that_change_the_path_are_not_forwarded(gateway, arrived):
    key = gateway.token()
    for name in NAMES:
        response = gateway.send("GET", PATH[1:], key, headers={**TEXT, name: SCRIPT})
        assert response.status_code == 404, f"{name}: {response.text}"
    assert [seen["path"] for seen in arrived()] == [PATH] * len(NAMES)


def test_without_the_gateway_the_backend_changes_the_path(backend, arrived):
    """Without the gateway. Shows that the test above could fail."""
    headers = {**TEXT, "x-api-key": "any", "x-forwarded-user": "alice", "SCRIPT_NAME": SCRIPT}
    response = requests.get(f"{backend.url}{PATH}", headers=headers, timeout=10)
    assert response.status_code == 200, response.text
    (seen,) = arrived()
    assert seen["path"] == "/timbr/api/get_ontologies/"


def test_an_escaped_letter_does_not_bypass_a_route(gateway, arrived):
    for path in ("timbr/ap%69/get_ontologies/", "timbr/api/get%5Fontologies/"):
        request = requests.Request("GET", gateway.url, headers={**TEXT, "x-api-key": gateway.token()}).prepare()
        request.url = gateway.url + path  # Set here, because requests would unescape it.
        with requests.Session() as session:
            response = session.send(request, verify=gateway.ca, timeout=10)
        assert (response.status_code, response.json()["reason"]) == (400, "request_line_ambiguous"), path
    assert arrived() == []
