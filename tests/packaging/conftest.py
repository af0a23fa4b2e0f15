"""podman, and containers that are removed at the end."""

import os
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
IMAGE = os.environ.get("TIMBR_TEST_IMAGE", "localhost/timbr-gateway:test")
# As an operator who is careful runs it.
CLOSED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
PATIENCE = 30


def podman(*arguments, check=True, **more):
    """Its output; what it writes to standard error (it misses systemd's timers here) is shown when it fails."""
    command = [ROOT / "tests/packaging/podman", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    assert not check or done.returncode == 0, f"podman {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}"
    return done


def wait_until(what, done, patience=PATIENCE):
    """Waits until `done` returns something; looks often, and gives up with a sentence."""
    deadline = time.monotonic() + patience
    while True:
        if result := done():
            return result
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.05)


class Container:
    def __init__(self, *arguments):
        self.id = podman("run", "--detach", *arguments).stdout.strip()

    def exec(self, *command, check=True):
        done = podman("exec", self.id, *command, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.log}"
        return done

    @property
    def log(self):
        done = podman("logs", self.id)
        return done.stdout + done.stderr

    def inspect(self, form):
        return podman("inspect", self.id, "--format", form).stdout.strip()

    def healthy(self):
        return podman("healthcheck", "run", self.id, check=False).returncode == 0

    def port(self, inside):
        """Where the machine has published it."""
        return podman("port", self.id, inside).stdout.strip()


@pytest.fixture(scope="module")
def run():
    """Starts containers."""
    started = []

    def start(*arguments):
        started.append(Container(*arguments))
        return started[-1]

    yield start
    for container in started:
        podman("rm", "--force", "--volumes", "--time", "1", container.id)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The binary that the image holds."""
    path = tmp_path_factory.mktemp("image") / "timbr-gateway"
    made = podman("create", IMAGE).stdout.strip()
    podman("cp", f"{made}:/usr/local/bin/timbr-gateway", path)
    podman("rm", made)
    return path


@pytest.fixture(scope="session")
def salt(program):
    return subprocess.run([program, "salt"], check=True, capture_output=True, text=True).stdout.strip()
