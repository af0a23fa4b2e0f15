"""The platform: a Flask-AppBuilder application with its login form, and a page with the user's token.

A small API accepts those tokens, as the platform's own API does. PLATFORM_FOLDER contains the database and `tokens.json`:
each user's token, which a test changes as an administrator would.
"""

import json
import os
import pathlib

from flask import Flask, g, jsonify, request
from flask_appbuilder import AppBuilder, BaseView, expose, has_access
from flask_appbuilder.models.sqla import Base
from flask_appbuilder.utils.legacy import get_sqla_class
from flask_wtf import CSRFProtect

FOLDER = pathlib.Path(os.environ["PLATFORM_FOLDER"])

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ["PLATFORM_SECRET"],
    SQLALCHEMY_DATABASE_URI=f"sqlite:///{FOLDER / 'platform.sqlite'}",
    WTF_CSRF_ENABLED=True,
    AUTH_TYPE=1,
    SESSION_COOKIE_HTTPONLY=True,
    FAB_ADD_SECURITY_VIEWS=True,
)
csrf = CSRFProtect(app)
db = get_sqla_class()()
appbuilder = AppBuilder()


def tokens():
    return json.loads((FOLDER / "tokens.json").read_text())


def record_request(details):
    with (FOLDER / "record.jsonl").open("a") as file:
        file.write(json.dumps({"path": request.path, "method": request.method, **details}) + "\n")


class Timbr(BaseView):
    route_base = "/timbr"
    default_view = "get_timbr_user_token"

    @expose("/get_timbr_user_token/")
    @has_access
    def get_timbr_user_token(self):
        record_request({"user": g.user.username})
        return jsonify(token=tokens()[g.user.username])

    @expose("/me/")
    @has_access
    def me(self):
        return jsonify(result={"username": g.user.username})


def owner():
    key = request.headers.get("x-api-key")
    return next((user for user, token in tokens().items() if token == key), None)


@app.post("/timbr/openapi/ontology/<ontology>/query")
@csrf.exempt
def query(ontology):
    body = request.get_data(as_text=True)
    record_request({"key": request.headers.get("x-api-key"), "text": body[:100], "length": len(body)})
    user = owner()
    return (jsonify([{"user": user, "ontology": ontology, "length": len(body)}]) if user
            else (jsonify(status="error", data="the token is not valid"), 401))


@app.get("/timbr/api/get_ontologies/")
def get_ontologies():
    return jsonify(status="success", data=["sales"]) if owner() else (jsonify(status="error", data="no"), 401)


with app.app_context():
    db.init_app(app)
    appbuilder.init_app(app, db.session)
    Base.metadata.create_all(db.engine)
    appbuilder.add_view_no_menu(Timbr())
    appbuilder.add_permissions(update_perms=True)
    role = appbuilder.sm.find_role("Admin")
    for name, password in json.loads(os.environ["PLATFORM_USERS"]).items():
        if not appbuilder.sm.find_user(name):
            appbuilder.sm.add_user(name, name, "of the tests", f"{name}@example.com", role, password)
