"""The Flask backend under gunicorn, and what it has recorded."""

import json
import pathlib
import sys

from backend import data
from support.processes import Process, clean_environment, free_port, is_open, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Backend:
    """A running backend. gunicorn ends idle connections after its usual two seconds."""

    def __init__(self, folder, port=None):
        self.folder = folder
        self.record = folder / "record.jsonl"
        self.record.touch()
        self.database = folder / "backend.sqlite"
        if not self.database.exists():
            data.create(self.database)
        self.port = port or free_port()
        command = [sys.executable, "-m", "gunicorn", "--chdir", str(ROOT), "--bind", f"127.0.0.1:{self.port}",
                   "--worker-class", "gthread", "--workers", "2", "--threads", "16", "--keep-alive", "2",
                   "--timeout", "120", "--graceful-timeout", "1", "--no-control-socket", "backend.app:app"]
        environment = clean_environment(BACKEND_DATABASE=str(self.database), BACKEND_RECORD=str(self.record))
        self.process = Process(command, environment, folder / "backend.log")
        wait_until("the backend listens", lambda: self.process.check_alive() or is_open(self.port))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def arrived(self):
        """All requests that have arrived."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def mark(self):
        """A function that gives what has arrived since now."""
        before = len(self.arrived())
        return lambda: self.arrived()[before:]

    def stop(self):
        self.process.stop()
