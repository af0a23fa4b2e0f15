"""Targets of the gateway, with everything enabled."""

import dataclasses

# CPU of the gateway divided by that of the best peer of the case, for the same work.
CPU = {
    "plain-h1": 0.85,
    "tls-h1": 0.85,
    "tls-h2": 0.85,
    "handshake": 0.85,
    "resume": 0.80,
    "mix": 0.85,
    "reject": 0.85,
    "down-plain": 0.85,
    "down-tls": 0.85,
    "down-h2": 0.75,
    "up-tls": 0.90,
    "rate-plain": 0.75,
    "rate-tls": 0.75,
    "rate-h2": 0.75,
}

# The p99 at a fixed rate must not be worse than that of the best peer.
LATENCY = ("rate-plain", "rate-tls", "rate-h2", "busy-plain", "busy-tls")

# CPU per request, in microseconds.
MICROSECONDS = {"get_token": 20.0}

# Single targets, with the unit in the name.
IDLE_KIB = {"TLS": 6.0, "plain": 1.5}
TOKEN_BYTES = 250
LOOKUP_RATIO = 1.5
STREAM_GROWTH_MIB = 2.0
START_MS = 50.0
SCALE_RATIO = 1.10


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A measured value and its maximum."""

    case: str
    figure: str
    measured: float
    most: float

    @property
    def met(self):
        return round(self.measured, 2) <= self.most

    def row(self):
        missed = f"missed by {self.measured / self.most - 1:.0%}" if self.most else "missed"
        return [self.case, self.figure, f"{self.measured:.2f}", f"≤ {self.most:.2f}", "met" if self.met else missed]
