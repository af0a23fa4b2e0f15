"""That the backend answers for the path that was judged."""

import requests

TEXT = {"Content-Type": "application/text"}
# Judged as a path of the openapi route, which takes text. With the first segments for its SCRIPT_NAME, gunicorn would
# hand the rest to the application: a path of the api route, which takes JSON alone.
SCRIPT = "/timbr/openapi/x"
PATH = f"{SCRIPT}/timbr/api/get_ontologies/"
NAMES = ["SCRIPT_NAME", "Script_Name", "script-name", "PATH_INFO", "path-info", "X-Script-Name", "X-Forwarded-Prefix",
         "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Original-Uri"]


def test_fields_that_change_the_path_end_at_the_gateway(gateway, arrived):
    key = gateway.token()
    for name in NAMES:
        answer = gateway.send("GET", PATH[1:], key, headers={**TEXT, name: SCRIPT})
        assert answer.status_code == 404, f"{name}: {answer.text}"
    assert [seen["path"] for seen in arrived()] == [PATH] * len(NAMES)


def test_the_backend_would_change_its_path(backend, arrived):
    """Without the gateway between, so that the test above cannot pass for want of a bypass."""
    headers = {**TEXT, "x-api-key": "any", "x-forwarded-user": "alice", "SCRIPT_NAME": SCRIPT}
    answer = requests.get(f"{backend.url}{PATH}", headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text
    (seen,) = arrived()
    assert seen["path"] == "/timbr/api/get_ontologies/"


def test_an_escaped_letter_is_no_way_around_a_route(gateway, arrived):
    for path in ("timbr/ap%69/get_ontologies/", "timbr/api/get%5Fontologies/"):
        request = requests.Request("GET", gateway.url, headers={**TEXT, "x-api-key": gateway.token()}).prepare()
        request.url = gateway.url + path  # As it stands: requests would write it plainly.
        with requests.Session() as session:
            answer = session.send(request, verify=gateway.ca, timeout=10)
        assert (answer.status_code, answer.json()["reason"]) == (400, "request_line_ambiguous"), path
    assert arrived() == []
