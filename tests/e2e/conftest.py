"""One backend and one gateway for all tests, and fixtures that start more."""

import itertools
import pathlib
import sys

import pytest
from cryptography.fernet import Fernet

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from support.backend import Backend  # noqa: E402
from support.directory import Directory  # noqa: E402
from support.gateway import Gateway  # noqa: E402
from support.pki import Pki  # noqa: E402
from support.platform import Platform  # noqa: E402


class Setup:
    """Starts and stops backends and gateways, and checks the gateways' logs for secrets."""

    def __init__(self, folder):
        self.folder = folder
        self.pki = Pki(folder)
        self.salt = Fernet.generate_key().decode()
        self.numbers = itertools.count()
        self.backends, self.gateways = [], []
        # Values that must not appear in a log. Each gateway adds the secrets that it is used with.
        self.secrets = set()

    def _folder(self, kind):
        folder = self.folder / f"{kind}-{next(self.numbers)}"
        folder.mkdir()
        return folder

    def backend(self, **more):
        backend = Backend(self._folder("backend"), **more)
        self.backends.append(backend)
        backend.wait_ready()
        return backend

    def platform(self, users):
        platform = Platform(self._folder("platform"), users)
        self.backends.append(platform)
        platform.wait_ready()
        return platform

    def directory(self, users, **options):
        directory = Directory(self._folder("directory"), self.pki, users, **options)
        self.backends.append(directory)
        directory.wait_ready()
        return directory

    def gateway(self, upstream, **options):
        gateway = Gateway(self._folder("gateway"), self.pki, self.salt, self.secrets, upstream, **options)
        self.gateways.append(gateway)
        gateway.wait_ready()
        return gateway

    def stop(self):
        stubborn = [started.process.log for started in self.gateways + self.backends if not started.process.stop()]
        assert not stubborn, f"killed, because they did not stop on SIGTERM: {stubborn}"
        for gateway in self.gateways:
            check_log(gateway.process.output, self.secrets)


def check_log(output, secrets):
    assert output, "a gateway logged nothing"
    assert "panicked" not in output, output
    for secret in secrets:
        assert secret not in output, f"a gateway wrote {secret!r} to its log"
    assert "gAAAAA" not in output, "a gateway wrote a bearer to its log"
    # The prefix of tokens and keys. Fingerprints, which may be logged, do not have it.
    assert "tk_" not in output, "a gateway wrote a token to its log"


SETUP = pytest.StashKey[Setup]()


@pytest.fixture(scope="session")
def setup(tmp_path_factory, pytestconfig):
    setup = pytestconfig.stash[SETUP] = Setup(tmp_path_factory.mktemp("e2e"))
    yield setup
    setup.stop()


@pytest.fixture(scope="session")
def backend(setup):
    return setup.backend()


@pytest.fixture(scope="session")
def gateway(setup, backend):
    return setup.gateway(backend.url)


@pytest.fixture
def arrived(backend):
    """The requests that the backend received since the test began."""
    return backend.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    setup = item.config.stash.get(SETUP, None)
    if report.failed and setup is not None:
        for started in setup.gateways + setup.backends:
            report.sections.append((str(started.process.log), started.process.output[-4000:]))
    return report
