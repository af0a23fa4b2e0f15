"""The compose file, by podman-compose: up, a round trip, and down."""

import os
import socket
import subprocess
from base64 import b64encode

import pytest
import requests
from cryptography.fernet import Fernet

from conftest import IMAGE, PATIENCE, ROOT, wait_until

pytestmark = pytest.mark.timeout(300)
JSON = {"Content-Type": "application/json"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# 32 bytes, unlike the salt.
STORE_KEY = "Lz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8="


class Composed:
    def __init__(self, folder, salt):
        self.folder, self.https, self.admin = folder / "timbr-gateway-test", free_port(), free_port()
        secrets = self.folder / "secrets"
        secrets.mkdir(parents=True, mode=0o700)
        (self.folder / "compose.yaml").write_text((ROOT / "deploy/compose.yaml").read_text())
        for name, value in (("api_auth_salt", salt), ("store_key", STORE_KEY), ("redis_password", "correct-horse")):
            (secrets / name).write_text(f"{value}\n")
            (secrets / name).chmod(0o644)

    def compose(self, *arguments):
        """What it says of its health checks, which need systemd's timers, is no failure."""
        environment = {**os.environ, "TIMBR_GATEWAY_IMAGE": IMAGE, "TIMBR_GATEWAY_PORT": str(self.https),
                       "TIMBR_GATEWAY_ADMIN_PORT": str(self.admin)}
        done = subprocess.run(["podman-compose", "--podman-path", ROOT / "tests/packaging/podman", *arguments],
                              cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + (done.stderr if arguments == ("logs",) else "")

    def ready(self):
        try:
            return requests.get(f"http://127.0.0.1:{self.admin}/readyz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def send(self, method, path, **fields):
        return requests.request(method, f"https://127.0.0.1:{self.https}{path}", headers={**JSON, **fields}, verify=False,
                                timeout=PATIENCE)


@pytest.fixture(scope="module")
def composed(tmp_path_factory, salt):
    composed = Composed(tmp_path_factory.mktemp("compose"), salt)
    try:
        composed.compose("up", "--detach", "--no-build")
        wait_until("the gateway is ready", composed.ready)
        yield composed
    finally:
        # Shown by pytest where a test failed.
        print(composed.compose("logs"))
        composed.compose("down", "--volumes", "--timeout", "5")


def token(composed, salt):
    bearer = Fernet(salt).encrypt(b64encode(b"alice:wonderland")).decode()
    answer = composed.send("POST", "/timbr/api/get_token", Authorization=f"Bearer {bearer}")
    return answer.json()["data"][0] if answer.status_code == 200 else None


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_the_round_trip_with_a_token_that_outlives_the_gateway(composed, salt):
    refused = composed.send("GET", "/timbr/api/get_ontologies/")
    assert (refused.status_code, refused.json()["reason"]) == (401, "api_key_missing")
    # Redis may take a moment longer than the gateway, and podman's name server much longer, where a network has no way out.
    key = wait_until("there is a token", lambda: token(composed, salt), patience=60)
    answer = composed.send("GET", "/timbr/api/get_ontologies/", **{"x-api-key": key})
    assert (answer.status_code, answer.json()["data"]) == (200, ["sales", "logistics"])
    composed.compose("restart", "gateway")
    wait_until("the gateway is ready", composed.ready)
    again = wait_until("Redis is there for it", lambda: composed.send(
        "GET", "/timbr/api/get_ontologies/", **{"x-api-key": key}).status_code != 503, patience=60)
    assert again and composed.send("GET", "/timbr/api/get_ontologies/", **{"x-api-key": key}).status_code == 200


def test_operators_verbs_are_refused_from_outside_of_the_container(composed):
    assert requests.get(f"http://127.0.0.1:{composed.admin}/tokens", timeout=PATIENCE).status_code == 403
    assert "alice" in composed.compose("exec", "-T", "gateway", "timbr-gateway", "tokens", "list")
