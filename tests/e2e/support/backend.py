"""The Flask backend under gunicorn, and what it has recorded."""

import json
import pathlib
import sys

from backend import data
from support.processes import Process, clean_environment, free_port, is_open, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Backend:
    """A started backend. gunicorn ends idle connections after its usual two seconds, and folds `_` into `-` in names
    of fields, as it did by default for years: what the gateway lets through is then seen by the application."""

    def __init__(self, folder, port=None):
        self.record = folder / "record.jsonl"
        self.record.touch()
        self.port = port or free_port()
        database = folder / "backend.sqlite"
        data.create(database)
        command = [sys.executable, "-m", "gunicorn", "--chdir", str(ROOT), "--bind", f"127.0.0.1:{self.port}",
                   "--worker-class", "gthread", "--workers", "2", "--threads", "24", "--keep-alive", "2",
                   "--header-map", "dangerous", "--timeout", "120", "--graceful-timeout", "1", "--no-control-socket",
                   "backend.app:app"]
        environment = clean_environment(BACKEND_DATABASE=str(database), BACKEND_RECORD=str(self.record))
        self.process = Process(command, environment, folder / "backend.log")

    def wait_ready(self):
        wait_until("the backend listens", lambda: self.process.check_alive() or is_open(self.port))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def arrived(self):
        """All requests that have arrived, in this order; `id` counts them."""
        return [{"id": number, **json.loads(line)} for number, line in enumerate(self.record.read_text().splitlines())]

    def mark(self):
        """A function that gives what has arrived since now."""
        before = len(self.arrived())
        return lambda: self.arrived()[before:]
