"""The backend's HTTP side: Flask, as a Timbr backend is, under gunicorn.

BACKEND_DATABASE is the SQLite file. Every received request is appended to the file BACKEND_RECORD as a line of JSON, so
that a test can check which requests the gateway forwarded.
"""

import base64
import hashlib
import json
import os
import re
import sqlite3
import time
import uuid

from flask import Flask, Response, g, jsonify, request

from backend import data
from backend.keys import PLATFORM_KEYS, SERVICE_KEY

DATABASE = os.environ["BACKEND_DATABASE"]
RECORD = os.environ["BACKEND_RECORD"]

app = Flask(__name__)


def caller():
    """The user: from the service key, a platform key, or the header of the trusted gateway."""
    login = request.authorization
    key = request.headers.get("x-api-key") or (login.password if login and login.type == "basic" else None)
    if key == SERVICE_KEY:
        return request.headers.get("x-api-impersonate-user")
    if key in PLATFORM_KEYS:
        return PLATFORM_KEYS[key]
    # The backend trusts the gateway for JWTs too, and reads their users where the gateway names none.
    token = request.headers.get("x-jwt-token")
    if token and "x-forwarded-user" not in request.headers:
        payload = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["preferred_username"]
    return request.headers.get("x-forwarded-user") if key or token else None


@app.before_request
def record_and_authenticate():
    body = request.get_data()
    g.user = caller()
    line = {
        "method": request.method,
        "path": request.full_path.rstrip("?"),
        "fields": list(request.headers.items()),
        "folded": {name: value for name, value in request.environ.items() if name.startswith("HTTP_")},
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "text": body[:1000].decode("utf-8", "replace"),
        "user": g.user,
        "time": time.time(),
    }
    descriptor = os.open(RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)
    if g.user is None:
        return error(401, "the token is not valid")
    return None


def success(rows):
    return jsonify(status="success", data=rows)


def error(status, message):
    return jsonify(status="error", data=message), status


@app.errorhandler(sqlite3.Error)
def bad_sql(failure):
    return error(400, f"the query failed: {failure}")


@app.errorhandler(404)
def no_such_endpoint(_):
    return error(404, "no such endpoint")


def run(sql):
    """Runs SQL. `/* sleep 1.5 */` in it adds a delay; `:user` is replaced by the caller."""
    if pause := re.search(r"/\* sleep ([\d.]+) \*/", sql):
        time.sleep(float(pause[1]))
    limit = int(request.headers.get("results-limit", 0)) or None
    return data.select(DATABASE, sql.replace(":user", f"'{g.user}'"), limit)


@app.get("/timbr/api/get_ontologies/")
def get_ontologies():
    return success([row["name"] for row in data.select(DATABASE, "SELECT name FROM ontology ORDER BY name")])


@app.post("/timbr/api/query/")
def query():
    return success(run(request.get_json()["query"]))


@app.post("/timbr/api/get_ontology/<name>")
def get_ontology(name):
    return success({"ontology": name, "concepts": ["customer"]})


@app.post("/timbr/api/create_ontology/")
def create_ontology():
    with data.connect(DATABASE) as database:
        database.execute("INSERT INTO ontology VALUES (?)", [request.get_json()["ontology_name"]])
    return success("created")


@app.post("/timbr/api/get_config/<name>")
def get_config(name):
    return success({"ontology": name, "cache": True})


@app.post("/timbr/api/clear_cache/<name>")
def clear_cache(name):
    return success(f"cleared {name}")


@app.get("/timbr/api/q/<ontology>/<any(concept, view):kind>/<name>")
def read(ontology, kind, name):
    if not re.fullmatch(r"\w+", name):
        return error(404, f"no {kind} {name} in {ontology}")
    return success(run(f"SELECT * FROM {name}"))


@app.post("/timbr/api/kb/search")
def search():
    body = request.get_json()
    marks = ",".join("?" * len(body["knowledge_bases"]))
    with data.connect(DATABASE) as database:
        rows = database.execute(f"SELECT * FROM example WHERE knowledge_base IN ({marks})", body["knowledge_bases"])
        matches = [dict(row) for row in rows]
    changed = {match["knowledge_base"]: match["changed_on"] for match in matches}
    return jsonify(matches=matches, match_level="high" if matches else "none", per_kb_max_changed_on=changed,
                   latency_ms=1.0)


@app.post("/timbr/openapi/ontology/<ontology>/query")
def openapi_query(ontology):
    statement = request.get_data(as_text=True)
    if (ontology, statement) == ("system_db", "SHOW TOKEN"):
        return jsonify([{"token": next(key for key, user in PLATFORM_KEYS.items() if user == g.user)}])
    rows = run(statement)
    if request.headers.get("x-async") != "true":
        return jsonify(rows)
    identifier = uuid.uuid4().hex
    with data.connect(DATABASE) as database:
        database.execute("INSERT INTO async_result (id, rows) VALUES (?, ?)", [identifier, json.dumps(rows)])
    return jsonify(status="running", response_id=identifier, message=f"queued for {ontology}"), 202


@app.get("/timbr/openapi/get-async-results/<identifier>")
def get_async_results(identifier):
    with data.connect(DATABASE) as database:
        database.execute("UPDATE async_result SET asked = asked + 1 WHERE id = ?", [identifier])
        row = database.execute("SELECT * FROM async_result WHERE id = ?", [identifier]).fetchone()
    if row is None:
        return error(404, "no such result")
    if row["asked"] < 3:
        return jsonify(status="running", response_id=identifier, message="still running")
    return jsonify(status="completed", response=json.loads(row["rows"]), original_status_code=200)


@app.get("/timbr/api/large/<int:mebibytes>")
def large(mebibytes):
    """A body of this size, with a pause of `pause` seconds after the first mebibyte."""
    pause = request.args.get("pause", 0, float)

    def parts():
        for number in range(mebibytes):
            if number == 1:
                time.sleep(pause)
            yield bytes([number]) * (1 << 20)

    return Response(parts(), content_type="application/octet-stream")


@app.post("/timbr/api/digest")
def digest():
    body = request.get_data()
    return success({"length": len(body), "sha256": hashlib.sha256(body).hexdigest()})
