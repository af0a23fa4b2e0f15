"""Processes that a test starts and ends."""

import os
import random
import signal
import socket
import subprocess
import time

PATIENCE = 30


def free_port():
    """A port of 127.0.0.1 from below the range of which the kernel takes the ports of outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def wait_until(what, done, patience=PATIENCE):
    """Waits until `done` returns something; looks often, and gives up with a sentence."""
    deadline = time.monotonic() + patience
    while True:
        if result := done():
            return result
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.02)


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Process:
    """A process with its output in a file."""

    def __init__(self, command, environment, log):
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def check_alive(self):
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"

    def ask_to_stop(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        return self.process.wait(PATIENCE)

    def stop(self):
        """Ends it, by force if it has to be. Returns whether it ended when asked to."""
        if self.process.poll() is None:
            self.ask_to_stop()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                return False
        return True


def clean_environment(**more):
    """This process's environment without what could change the gateway's configuration or a client's trust."""
    foreign = ("TIMBR_", "API_AUTH_", "REQUESTS_CA", "CURL_CA", "SSL_CERT", "HTTP_PROXY", "HTTPS_PROXY", "GUNICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    return {**kept, "NO_PROXY": "*", "no_proxy": "*", **more}
