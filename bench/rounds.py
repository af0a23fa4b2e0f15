"""Measures the proxies one after the other in each round, so that the machine's noise affects all of them equally."""

import dataclasses
import pathlib
import statistics
import time

from processes import cpu_seconds, system_share


@dataclasses.dataclass
class Slice:
    """The measurement of one proxy in one round. CPU in microseconds per unit of work; `wire`: bytes on the network per
    unit, on both sides of the proxy, with all headers."""

    cpu: float
    user: float
    system: float
    busy: float
    rate: float
    errors: int
    p50: float
    p99: float
    wire: float


class Rounds:
    """The results of one case: the slices of each proxy, one per round."""

    def __init__(self, case):
        self.case = case
        self.slices = {}

    def median(self, proxy, figure):
        return statistics.median(getattr(each, figure) for each in self.slices[proxy])

    def span(self, proxy, figure):
        values = [getattr(each, figure) for each in self.slices[proxy]]
        return min(values), max(values)

    def ratio(self, proxy, other, figure="cpu"):
        """The median of the ratios of all rounds; both slices of a ratio were measured at about the same time."""
        pairs = zip(self.slices[proxy], self.slices[other])
        return statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs)

    def errors(self):
        return sum(each.errors for slices in self.slices.values() for each in slices)


def measure(bench, case, options):
    """Runs a warm-up round and all rounds of a case."""
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
    """Runs one slice of load, and measures the proxy's CPU time."""
    sent, cpu, ticks, begun = loopback_bytes(), cpu_seconds(proxy.pid), system_share(proxy.pid), time.monotonic()
    load = case.run(bench, proxy, options).in_units(case.units)
    lasted = time.monotonic() - begun
    spent = cpu_seconds(proxy.pid) - cpu
    user, system = (after - before for after, before in zip(system_share(proxy.pid), ticks))
    share = user / max(1, user + system)
    each = spent * 1e6 / max(1, load.done)
    wire = (loopback_bytes() - sent) / max(1, load.done)
    return Slice(each, each * share, each * (1 - share), spent / lasted, load.rate, load.errors, load.p50, load.p99, wire)


def loopback_bytes():
    """Bytes that crossed the loopback interface, with the headers of Ethernet, IP and TCP."""
    return int(pathlib.Path("/sys/class/net/lo/statistics/rx_bytes").read_text())
