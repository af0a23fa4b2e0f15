"""The built gateway, and the ways to talk to it."""

import os
import urllib.request

import requests

from support.bearer import bearer
from support.processes import Process, clean_environment, free_port, wait_until

JSON = {"Content-Type": "application/json"}


class Gateway:
    """A running gateway. `options` are its variables without `TIMBR_GATEWAY_`, and `API_AUTH_SALT`."""

    def __init__(self, folder, pki, salt, upstream, **options):
        folder.mkdir(parents=True, exist_ok=True)
        self.salt = salt
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
        variables = {f"TIMBR_GATEWAY_{name}": str(value) for name, value in settings.items()}
        environment = clean_environment(API_AUTH_SALT=salts, **variables)
        command = [os.environ["TIMBR_GATEWAY_BIN"], "serve"]
        self.process = Process(command, environment, folder / "gateway.log")
        wait_until("the gateway is ready", lambda: self.process.check_alive() or self.readiness() == 200)

    @property
    def url(self):
        """Over TLS, with the slash that pytimbr's clients want."""
        return f"https://localhost:{self.https}/"

    def readiness(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return None

    def get_token(self, user="alice", password="wonder:land", salt=None, **more):
        """The answer of get_token, asked as the documentation's script does."""
        headers = {**JSON, "Authorization": f"Bearer {bearer(salt or self.salt, user, password)}", **more}
        return requests.post(f"{self.url}timbr/api/get_token", headers=headers, verify=self.ca, timeout=30)

    def token(self, user="alice", password="wonder:land"):
        answer = self.get_token(user, password)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]

    def send(self, method, path, key=None, headers=JSON, **more):
        """A request over TLS; `key` becomes `x-api-key`."""
        headers = {**headers, **({"x-api-key": key} if key else {})}
        return requests.request(method, f"{self.url}{path}", headers=headers, verify=self.ca, timeout=60, **more)

    def stop(self):
        self.process.stop()
