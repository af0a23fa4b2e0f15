"""The platform under gunicorn."""

import json
import pathlib
import secrets
import sys

from support.processes import Process, clean_environment, free_port, is_open, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Platform:
    def __init__(self, folder, users):
        self.folder = folder
        self.port = free_port()
        self.record = folder / "record.jsonl"
        self.record.touch()
        self.users = users
        self.tokens = {}
        for user in users:
            self.rotate(user)
        self.start()

    def start(self):
        command = [sys.executable, "-m", "gunicorn", "--chdir", str(ROOT), "--bind", f"127.0.0.1:{self.port}",
                   "--worker-class", "gthread", "--threads", "8", "--graceful-timeout", "1", "--no-control-socket",
                   "--preload", "platform_app.app:app"]  # It listens once the application is loaded.
        environment = clean_environment(PLATFORM_FOLDER=str(self.folder), PLATFORM_USERS=json.dumps(self.users),
                                        PLATFORM_SECRET="the platform's secret")
        self.process = Process(command, environment, self.folder / "platform.log")

    def wait_ready(self):
        wait_until("the platform listens", lambda: self.process.check_alive() or is_open(self.port))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def rotate(self, user):
        """Replaces the user's token, as a user can on the platform."""
        self.tokens[user] = f"tk_platform_{user}_{secrets.token_hex(8)}"
        (self.folder / "tokens.json").write_text(json.dumps(self.tokens))
        return self.tokens[user]

    def arrived(self):
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def mark(self):
        before = len(self.arrived())
        return lambda: self.arrived()[before:]
