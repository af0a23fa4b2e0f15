"""The built gateway, and requests to it."""

import os
import urllib.error
import urllib.request

import requests

from support.bearer import bearer, encoded
from support.processes import Process, clean_environment, free_port, wait_until

JSON = {"Content-Type": "application/json"}


class Gateway:
    """A started gateway. `options` are environment variables without the prefix `TIMBR_GATEWAY_`, and `API_AUTH_SALT`.
    Every secret that is used is added to `secrets`, because it must not appear in the log."""

    def __init__(self, folder, pki, salt, secrets, upstream, **options):
        self.salt = salt
        self.secrets = secrets
        self.ca = str(pki.ca_file)
        self.https, self.http, self.admin = free_port(), free_port(), free_port()
        settings = {
            "UPSTREAM_URL": upstream,
            "LISTEN_HTTPS": f"127.0.0.1:{self.https}",
            "LISTEN_HTTP": f"127.0.0.1:{self.http}",
            "LISTEN_ADMIN": f"127.0.0.1:{self.admin}",
            "TLS_CERT_FILE": str(pki.certificate),
            "TLS_KEY_FILE": str(pki.key),
            "LOG_LEVEL": "trace",
            **options,
        }
        salts = settings.pop("API_AUTH_SALT", salt)
        self.secrets |= {*salts.split(","), *filter(None, [options.get("UPSTREAM_API_KEY")])}
        variables = {f"TIMBR_GATEWAY_{name}": str(value) for name, value in settings.items()}
        environment = clean_environment(API_AUTH_SALT=salts, **variables)
        command = [os.environ["TIMBR_GATEWAY_BIN"], "serve"]
        self.process = Process(command, environment, folder / "gateway.log")

    def wait_ready(self):
        wait_until("the gateway is ready", lambda: self.process.check_alive() or self.readiness() == 200)

    @property
    def url(self):
        """The HTTPS URL, with the trailing slash that pytimbr's clients require."""
        return f"https://localhost:{self.https}/"

    def readiness(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=2) as response:
                return response.status
        except urllib.error.HTTPError as rejected:
            return rejected.code
        except OSError:
            return None

    def get_token(self, user="alice", password="wonder:land", salt=None, **more):
        """The response of get_token, requested as in the documentation's script."""
        encrypted = bearer(salt or self.salt, user, password)
        self.secrets |= {*filter(None, [password]), encoded(user, password).decode(), encrypted}
        headers = {**JSON, "Authorization": f"Bearer {encrypted}", **more}
        return requests.post(f"{self.url}timbr/api/get_token", headers=headers, verify=self.ca, timeout=30)

    def token(self, user="alice", password="wonder:land"):
        response = self.get_token(user, password)
        assert response.status_code == 200, response.text
        (token,) = response.json()["data"]
        self.secrets.add(token)
        return token

    def send(self, method, path, key=None, headers=JSON, **more):
        """Sends a request over TLS, with `key` as `x-api-key`."""
        if key:
            self.secrets.add(key)
            headers = {**headers, "x-api-key": key}
        return requests.request(method, f"{self.url}{path}", headers=headers, verify=self.ca, timeout=60, **more)
