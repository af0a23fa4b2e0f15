"""The gateway for aarch64 under qemu-user: start, login and queries, with every page size of such kernels; and its packages."""

import base64
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest
import requests
from cryptography.fernet import Fernet

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = os.environ["TIMBR_AARCH64_BIN"]
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
# An emulated debug build is slow.
TIMEOUT = 60


def emulated(*arguments, binary=BINARY, page=4096, **more):
    done = subprocess.run([*EMULATOR, "-p", str(page), binary, *arguments], capture_output=True, text=True, timeout=TIMEOUT,
                          **more)
    assert done.returncode == 0, f"{arguments}, pages of {page}:\n{done.stdout}{done.stderr}"
    return done.stdout


# The allocator is built for one size of pages, and aborts at the start where they are larger.
@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_the_demo_runs_with_every_page_size(page):
    shown = emulated("demo", "--once", page=page)
    assert '{"country":"United Kingdom","name":"Ada Lovelace"}' in shown
    assert "\nPOST /timbr/openapi/ontology/sales/query as alice\n" in shown, shown


class Backend(http.server.BaseHTTPRequestHandler):
    """Returns the request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"user": self.headers["x-forwarded-user"], "sent": sent.decode()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def backend():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Gateway:
    """`serve`, with tokens in a file."""

    def __init__(self, folder, salt, backend):
        self.port, self.salt, self.log = free_port(), salt, folder / "log"
        environment = {
            "API_AUTH_SALT": salt,
            "TIMBR_GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{backend}",
            "TIMBR_GATEWAY_LISTEN_HTTPS": f"127.0.0.1:{self.port}",
            "TIMBR_GATEWAY_LISTEN_ADMIN": "off",
            "TIMBR_GATEWAY_STORE_KIND": "file",
            "TIMBR_GATEWAY_STORE_PATH": str(folder / "tokens"),
            "TIMBR_GATEWAY_AUTH_TRUST_SALT_HOLDER": "true",
        }
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*EMULATOR, BINARY, "serve"], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + TIMEOUT
        while socket.socket().connect_ex(("127.0.0.1", self.port)) != 0:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def post(self, path, **headers):
        # The certificate is the gateway's own.
        return requests.post(f"https://127.0.0.1:{self.port}{path}", headers=headers, data="SELECT 1", verify=False,
                             timeout=TIMEOUT)

    def token(self, user):
        bearer = Fernet(self.salt).encrypt(base64.b64encode(f"{user}:secret".encode())).decode()
        response = self.post("/timbr/api/get_token", **{"Content-Type": "application/json", "Authorization": f"Bearer {bearer}"})
        assert response.status_code == 200, response.text
        return response.json()["data"][0]

    def query(self, token):
        headers = {"Content-Type": "application/text", "x-api-key": token}
        return self.post("/timbr/openapi/ontology/sales/query", **headers)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT) == 0, self.log.read_text()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_login_and_a_query_before_and_after_a_restart(tmp_path, backend):
    salt = emulated("salt").strip()
    gateway = Gateway(tmp_path, salt, backend)
    try:
        assert gateway.query("tk_unknown").status_code in (401, 503)
        token = gateway.token("alice")
        response = gateway.query(token)
        assert (response.status_code, response.json()) == (200, {"user": "alice", "sent": "SELECT 1"})
        gateway.stop()
        gateway = Gateway(tmp_path, salt, backend)
        assert gateway.query(token).json()["user"] == "alice", "the token is in the file"
        gateway.stop()
    finally:
        gateway.process.kill()


def test_the_packages_are_for_this_machine(tmp_path):
    binary, licences, out = tmp_path / "timbr-gateway", tmp_path / "licences", tmp_path / "out"
    subprocess.run(["aarch64-linux-gnu-objcopy", "--strip-debug", BINARY, binary], check=True)
    licences.write_text("the licences of all crates\n")

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FAST": "1"})
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    archive = run(ROOT / "deploy/release/archive", binary, licences, tmp_path)
    assert archive.endswith("-aarch64-linux-gnu.tar.gz")
    run(ROOT / "deploy/release/packages", archive, out)
    [deb], [rpm] = out.glob("*.deb"), out.glob("*.rpm")
    assert run("dpkg-deb", "--field", deb, "Architecture") == "arm64"
    assert run("rpm", "--query", "--queryformat", "%{ARCH}", "--package", rpm) == "aarch64"
    depends = {name.split()[0] for name in run("dpkg-deb", "--field", deb, "Depends").split(", ")}
    assert depends == {"libc6", "libgcc-s1"}
    run("dpkg-deb", "--extract", deb, tmp_path / "root")
    assert emulated("--version", binary=tmp_path / "root/usr/bin/timbr-gateway").startswith("timbr-gateway ")
