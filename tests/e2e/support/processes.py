"""Processes that a test starts and stops."""

import os
import random
import signal
import socket
import subprocess
import time

TIMEOUT = 30


def free_port():
    """A free port of 127.0.0.1, below the kernel's range for outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def wait_until(event, condition, timeout=TIMEOUT):
    """Polls `condition` until it returns a true value, and returns that value. `event` describes it in the error."""
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"timed out waiting until {event}"
        time.sleep(0.02)


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Process:
    """A process whose output goes to a file."""

    def __init__(self, command, environment, log):
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def check_alive(self):
        assert self.process.poll() is None, f"exited with {self.process.returncode}:\n{self.output}"

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        return self.process.wait(TIMEOUT)

    def stop(self):
        """Stops the process, with SIGKILL after a timeout. Returns whether it stopped on SIGTERM."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                return False
        return True


def clean_environment(**more):
    """This process's environment, without variables that configure the gateway or a client's trust store."""
    removed = ("TIMBR_", "API_AUTH_", "REQUESTS_CA", "CURL_CA", "SSL_CERT", "HTTP_PROXY", "HTTPS_PROXY", "GUNICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(removed)}
    return {**kept, "NO_PROXY": "*", "no_proxy": "*", **more}
