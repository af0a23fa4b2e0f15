"""One backend and one gateway for all tests, and a way to make more."""

import itertools
import pathlib
import sys

import pytest
from cryptography.fernet import Fernet

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from backend.keys import SERVICE_KEY  # noqa: E402
from support.backend import Backend  # noqa: E402
from support.gateway import Gateway  # noqa: E402
from support.pki import Pki  # noqa: E402


class Setup:
    """Starts backends and gateways, ends them, and looks through all that the gateways have written."""

    def __init__(self, folder):
        self.folder = folder
        self.pki = Pki(folder)
        self.salt = Fernet.generate_key().decode()
        self.numbers = itertools.count()
        self.backends, self.gateways = [], []
        # What no log may show.
        self.secrets = {self.salt, SERVICE_KEY, "wonder:land"}

    def _folder(self, kind):
        folder = self.folder / f"{kind}-{next(self.numbers)}"
        folder.mkdir()
        return folder

    def backend(self, **more):
        backend = Backend(self._folder("backend"), **more)
        self.backends.append(backend)
        return backend

    def gateway(self, upstream, **options):
        gateway = Gateway(self._folder("gateway"), self.pki, self.salt, upstream, **options)
        self.gateways.append(gateway)
        return gateway

    def end(self):
        for started in self.gateways + self.backends:
            started.stop()
        for gateway in self.gateways:
            output = gateway.process.output
            assert "panicked" not in output, output
            for secret in self.secrets:
                assert secret not in output, f"a gateway has written {secret!r} to its log"
            assert "gAAAAA" not in output, "a gateway has written a bearer to its log"
            # Tokens of the gateway are tk_ and 56 hex digits; their fingerprints may be shown.
            assert "tk_" not in output, "a gateway has written a token to its log"


@pytest.fixture(scope="session")
def setup(tmp_path_factory):
    setup = Setup(tmp_path_factory.mktemp("e2e"))
    yield setup
    setup.end()


@pytest.fixture(scope="session")
def backend(setup):
    return setup.backend()


@pytest.fixture(scope="session")
def gateway(setup, backend):
    return setup.gateway(backend.url)


@pytest.fixture
def arrived(backend):
    """What has arrived at the backend since the test began."""
    return backend.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    setup = item.funcargs.get("setup")
    if report.failed and setup is not None:
        for started in setup.gateways + setup.backends:
            report.sections.append((str(started.process.log), started.process.output[-4000:]))
    return report
