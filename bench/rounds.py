"""Proxies take turns, round by round, so that the machine's noise falls on all alike."""

import dataclasses
import statistics
import time

from processes import cpu_seconds, system_share


@dataclasses.dataclass
class Slice:
    """One proxy's turn in one round. CPU in microseconds a unit of work."""

    cpu: float
    user: float
    system: float
    busy: float
    rate: float
    errors: int
    p50: float
    p99: float


class Rounds:
    """What came of one case: for each proxy its slices, in the order of the rounds."""

    def __init__(self, case):
        self.case = case
        self.slices = {}

    def median(self, proxy, figure):
        return statistics.median(getattr(each, figure) for each in self.slices[proxy])

    def span(self, proxy, figure):
        values = [getattr(each, figure) for each in self.slices[proxy]]
        return min(values), max(values)

    def ratio(self, proxy, other, figure="cpu"):
        """The median of the ratios of each round: what both met at about the same time."""
        pairs = zip(self.slices[proxy], self.slices[other])
        return statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs)

    def errors(self):
        return sum(each.errors for slices in self.slices.values() for each in slices)


def measure(bench, case, options):
    """All rounds of a case, and one before them that does not count."""
    turn = [proxy for name, proxy in bench.running.items() if name in case.proxies]
    rounds = Rounds(case)
    for number in range(-1, options.rounds):
        at = max(number, 0) % len(turn)
        for proxy in turn[at:] + turn[:at]:
            taken = take(bench, case, proxy, options)
            if number >= 0:
                rounds.slices.setdefault(proxy.name, []).append(taken)
    return rounds


def take(bench, case, proxy, options):
    """One slice of load, and what the proxy spent on it."""
    cpu, ticks, begun = cpu_seconds(proxy.pid), system_share(proxy.pid), time.monotonic()
    load = case.run(bench, proxy, options).in_units(case.units)
    lasted = time.monotonic() - begun
    spent = cpu_seconds(proxy.pid) - cpu
    user, system = (after - before for after, before in zip(system_share(proxy.pid), ticks))
    share = user / max(1, user + system)
    each = spent * 1e6 / max(1, load.done)
    return Slice(each, each * share, each * (1 - share), spent / lasted, load.rate, load.errors, load.p50, load.p99)
