"""The Flask backend under gunicorn, and the requests that it recorded."""

import json
import pathlib
import sys

from backend import data
from support.processes import Process, clean_environment, free_port, is_open, wait_until

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Backend:
    """A started backend. gunicorn closes idle connections after two seconds, its default, and maps `_` to `-` in header
    names, which was its default for years: so the application sees every header that the gateway forwards."""

    def __init__(self, folder, port=None):
        self.record = folder / "record.jsonl"
        self.record.touch()
        self.port = port or free_port()
        database = folder / "backend.sqlite"
        data.create(database)
        command = [sys.executable, "-m", "gunicorn", "--chdir", str(ROOT), "--bind", f"127.0.0.1:{self.port}",
                   "--worker-class", "gthread", "--workers", "2", "--threads", "24", "--keep-alive", "2",
                   "--header-map", "dangerous", "--timeout", "120", "--graceful-timeout", "1", "--no-control-socket",
                   "--preload", "backend.app:app"]  # It listens once the application is loaded.
        environment = clean_environment(BACKEND_DATABASE=str(database), BACKEND_RECORD=str(self.record))
        self.process = Process(command, environment, folder / "backend.log")

    def wait_ready(self):
        wait_until("the backend listens", lambda: self.process.check_alive() or is_open(self.port))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def arrived(self):
        """All received requests, oldest first; `id` is the index."""
        return [{"id": number, **json.loads(line)} for number, line in enumerate(self.record.read_text().splitlines())]

    def mark(self):
        """Returns a function that returns the requests received after this call."""
        before = len(self.arrived())
        return lambda: self.arrived()[before:]
