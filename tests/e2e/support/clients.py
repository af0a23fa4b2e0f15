"""The published clients of `tests/e2e/clients`, which have an environment of their own, and their stand-ins for Timbr."""

import json
import os
import pathlib
import subprocess

from support.processes import Process, clean_environment, free_port, is_open, wait_until

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "clients"
PYTHON = os.environ.get("TIMBR_E2E_CLIENTS_PYTHON", "")
NODE = os.environ.get("TIMBR_E2E_CLIENTS_NODE", "")


class StandIn:
    """A server of the folder `clients`."""

    def __init__(self, folder, script):
        folder.mkdir(parents=True)
        self.record = folder / "record.jsonl"
        self.record.touch()
        self.port = free_port()
        command = [PYTHON, str(FOLDER / script), str(self.port), str(self.record)]
        self.process = Process(command, clean_environment(), folder / "log")

    def wait_ready(self):
        wait_until("the stand-in listens", lambda: self.process.check_alive() or is_open(self.port))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def arrived(self):
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def mark(self):
        """Returns a function that returns the requests received after this call."""
        before = len(self.arrived())
        return lambda: self.arrived()[before:]


def run(sample, gateway, token, **more):
    """Runs a sample and returns the lines that it prints."""
    environment = clean_environment(
        GATEWAY_HTTP=f"127.0.0.1:{gateway.http}", GATEWAY_HTTPS=f"127.0.0.1:{gateway.https}", TIMBR_TOKEN=token,
        NO_PROXY="*", **more)
    if sample.endswith(".mjs"):
        # Modules are found beside the script.
        script = pathlib.Path(NODE) / sample
        script.write_text((FOLDER / sample).read_text())
        command = ["node", str(script)]
    else:
        command = [PYTHON, "-W", "ignore", str(FOLDER / sample)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"{sample}: {done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout.splitlines()
