"""The systemd units: checked by systemd-analyze, and run by a separate systemd."""

import json
import re
import shutil
import subprocess
import threading

import pytest

from conftest import PATIENCE, ROOT, podman, wait_until

UNITS = ROOT / "deploy/systemd"
SERVICE = "timbr-gateway.service"
# As it was when this was written: 1.2.
MOST_EXPOSURE = 20

# What a test cannot wait for: a process that was stopped does not write the core that its manager asks for.
QUICK = "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n"


def test_nothing_in_the_units_is_unknown(tmp_path, program):
    for unit in UNITS.glob("timbr-gateway.*"):
        text = unit.read_text().replace("/usr/local/bin/timbr-gateway", str(program))
        (tmp_path / unit.name).write_text(text)
    units = sorted(tmp_path.iterdir())
    assert len(units) == 2
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    # It exits with 0 where it only does not know a setting.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_service_is_closed_in():
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", UNITS / SERVICE]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


class Machine:
    """A container with systemd as its first process, in which the gateway is installed as docs/install.md says."""

    def __init__(self, run, program, folder):
        bin_folder, etc, system = folder / "bin", folder / "etc", folder / "system"
        for path in (bin_folder, etc, system / f"{SERVICE}.d"):
            path.mkdir(parents=True)
        shutil.copy(program, bin_folder / "timbr-gateway")
        for unit in UNITS.glob("timbr-gateway.*"):
            shutil.copy(unit, system)
        (system / f"{SERVICE}.d/quick.conf").write_text(QUICK)
        shutil.copy(UNITS / "gateway.yaml", etc)
        salt = subprocess.run([program, "salt"], check=True, capture_output=True, text=True).stdout
        (etc / "api-auth-salt").write_text(salt)
        key = subprocess.run([program, "store", "key"], check=True, capture_output=True, text=True).stdout
        (etc / "store-key").write_text(key)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
                        "-keyout", etc / "tls.key", "-out", etc / "tls.crt"], check=True, capture_output=True)
        for secret in ("api-auth-salt", "store-key", "tls.key"):
            (etc / secret).chmod(0o600)
        self.etc = etc
        self.container = run("--systemd=always", "--privileged", "--network=none",
                             "--volume", f"{bin_folder}/timbr-gateway:/usr/local/bin/timbr-gateway:ro",
                             "--volume", f"{etc}:/etc/timbr-gateway", "--volume", f"{system}:/run/systemd/system",
                             "localhost/systemd:latest")
        wait_until("systemd runs", lambda: self.run("systemctl", "is-system-running", check=False) == "running")
        # As systemd does where it is not in a container: credentials are mounted by a process of their own.
        self.run("mount", "--make-rshared", "/")
        self.run("systemd-run", "--unit=backend", "timbr-gateway", "demo", "--backend-only", "127.0.0.1:8000")

    def run(self, *command, check=True):
        return self.container.exec(*command, check=check).stdout.strip()

    def systemctl(self, *arguments):
        done = self.container.exec("systemctl", *arguments, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + self.journal()
        return done.stdout.strip()

    def show(self, name):
        return self.systemctl("show", SERVICE, "--value", f"--property={name}")

    def journal(self):
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", SERVICE)

    def curl(self, path, *more):
        """The status and the body."""
        said = self.run("curl", "--silent", "--show-error", "--cacert", "/etc/timbr-gateway/tls.crt", "--max-time", "20",
                        "--write-out", "\n%{http_code}", "--header", "Content-Type: application/json", *more,
                        f"https://localhost{path}")
        body, _, status = said.rpartition("\n")
        return int(status), json.loads(body)


@pytest.fixture(scope="module")
def machine(run, program, tmp_path_factory):
    machine = Machine(run, program, tmp_path_factory.mktemp("machine"))
    machine.systemctl("start", "timbr-gateway.socket", SERVICE)
    return machine


def test_it_is_active_once_it_listens_on_port_443_and_has_the_credentials(machine):
    assert machine.show("ActiveState") == "active"
    assert "443" in machine.show("StatusText")
    status, body = machine.curl("/timbr/api/get_ontologies/")
    assert (status, body["reason"]) == (401, "api_key_missing")


def test_the_round_trip(machine):
    bearer = machine.run("sh", "-c", "printf wonderland | API_AUTH_SALT_FILE=/etc/timbr-gateway/api-auth-salt "
                         "timbr-gateway bearer --user alice --password-stdin")
    status, body = machine.curl("/timbr/api/get_token", "--request", "POST", "--header", f"Authorization: Bearer {bearer}")
    assert status == 200, body
    key = ("--header", f"x-api-key: {body['data'][0]}")
    assert machine.curl("/timbr/api/get_ontologies/", *key) == (200, {"status": "success", "data": ["sales", "logistics"]})
    # The file of tokens outlives a restart, under another process and for the same user.
    machine.systemctl("restart", SERVICE)
    assert machine.curl("/timbr/api/get_ontologies/", *key)[0] == 200
    assert machine.run("stat", "--format=%a", "/var/lib/timbr-gateway/tokens") == "600"


def test_the_process_has_nothing_that_it_does_not_need(machine):
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status")
    told = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.M))
    assert told["Uid"].split()[0] != "0"
    assert (told["CapEff"], told["CapBnd"], told["NoNewPrivs"], told["Seccomp"]) == ("0" * 16, "0" * 16, "1", "2")
    assert machine.show("LimitCORE") == "0"


def test_no_connection_is_refused_while_it_is_restarted(machine):
    answers, enough = [], threading.Event()

    def ask():
        while not enough.is_set():
            answers.append(machine.curl("/timbr/api/get_ontologies/")[0])

    client = threading.Thread(target=ask)
    client.start()
    before = machine.show("MainPID")
    wait_until("the client has asked", lambda: len(answers) > 2)
    machine.systemctl("restart", SERVICE)
    so_far = len(answers)
    wait_until("the client has asked again", lambda: len(answers) > so_far + 2)
    enough.set()
    client.join()
    assert machine.show("MainPID") != before
    assert set(answers) == {401}


def test_a_reload_is_told_how_it_went(machine):
    before, sample = machine.show("MainPID"), machine.etc / "gateway.yaml"
    good = sample.read_text()
    sample.write_text(f"{good}nonsense: 1\n")
    try:
        refused = machine.container.exec("systemctl", "reload", SERVICE, check=False)
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "nonsense" in machine.journal()
        wait_until("systemd knows", lambda: "problem" in machine.show("StatusText"))
        assert machine.curl("/timbr/api/get_ontologies/")[0] == 401
    finally:
        sample.write_text(good)
    machine.systemctl("reload", SERVICE)
    wait_until("systemd knows", lambda: "problem" not in machine.show("StatusText"))
    assert (machine.show("ActiveState"), machine.show("MainPID")) == ("active", before)
    assert machine.curl("/timbr/api/get_ontologies/")[0] == 401


def test_a_gateway_that_hangs_is_started_anew(machine):
    before = machine.show("MainPID")
    machine.run("kill", "-STOP", before)
    wait_until("another one runs", lambda: machine.show("MainPID") not in (before, "0")
               and machine.show("ActiveState") == "active")
    assert "Watchdog timeout" in machine.journal()
    assert machine.curl("/timbr/api/get_ontologies/")[0] == 401


def test_it_ends_when_asked_to(machine):
    machine.systemctl("stop", "timbr-gateway.socket", SERVICE)
    assert (machine.show("ActiveState"), machine.show("Result"), machine.show("ExecMainStatus")) == ("inactive", "success", "0")
