"""Counts what was done, so that a part that was left out shows."""

from collections import Counter

import pytest

COUNTS = pytest.StashKey[Counter]()


def pytest_configure(config):
    config.stash[COUNTS] = Counter()


def pytest_collection_modifyitems(items):
    # Run first: with BLESS=1 these tests write files that the other tests render.
    items.sort(key=lambda item: item.path.name != "test_generated.py")


@pytest.fixture(scope="session")
def counts(request) -> Counter:
    """What the last line tells: so many of each were looked at."""
    return request.config.stash[COUNTS]


def pytest_terminal_summary(terminalreporter, config):
    told = ", ".join(f"{count} {what}" for what, count in config.stash[COUNTS].items())
    if told:
        terminalreporter.write_line(f"chart: {told}")
