"""One backend and one gateway for all tests, and a way to make more."""

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
    """Starts backends and gateways, ends them, and looks through all that the gateways have written."""

    def __init__(self, folder):
        self.folder = folder
        self.pki = Pki(folder)
        self.salt = Fernet.generate_key().decode()
        self.numbers = itertools.count()
        self.backends, self.gateways = [], []
        # What no log may show; the gateways add what is used with them.
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

    def directory(self, users):
        directory = Directory(self._folder("directory"), self.pki, users)
        self.backends.append(directory)
        directory.wait_ready()
        return directory

    def gateway(self, upstream, **options):
        gateway = Gateway(self._folder("gateway"), self.pki, self.salt, self.secrets, upstream, **options)
        self.gateways.append(gateway)
        gateway.wait_ready()
        return gateway

    def end(self):
        stubborn = [started.process.log for started in self.gateways + self.backends if not started.process.stop()]
        assert not stubborn, f"ended by force, as they did not when asked to: {stubborn}"
        for gateway in self.gateways:
            check_log(gateway.process.output, self.secrets)


def check_log(output, secrets):
    assert output, "a gateway has logged nothing"
    assert "panicked" not in output, output
    for secret in secrets:
        assert secret not in output, f"a gateway has written {secret!r} to its log"
    assert "gAAAAA" not in output, "a gateway has written a bearer to its log"
    # Tokens and keys begin so; their fingerprints, which may be shown, do not.
    assert "tk_" not in output, "a gateway has written a token to its log"


SETUP = pytest.StashKey[Setup]()


@pytest.fixture(scope="session")
def setup(tmp_path_factory, pytestconfig):
    setup = pytestconfig.stash[SETUP] = Setup(tmp_path_factory.mktemp("e2e"))
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
    setup = item.config.stash.get(SETUP, None)
    if report.failed and setup is not None:
        for started in setup.gateways + setup.backends:
            report.sections.append((str(started.process.log), started.process.output[-4000:]))
    return report
