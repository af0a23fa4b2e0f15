"""Targets of the gateway, with everything enabled."""

import dataclasses

from proxies import HAPROXY, HAPROXY_TUNED, NGINX, NGINX_TUNED

# CPU of the gateway divided by the peer's, for the same work.
CPU = {
    "plain-h1": {NGINX: 0.95, HAPROXY: 0.88},
    "tls-h1": {NGINX: 0.75, HAPROXY: 0.72},
    "tls-h2": {NGINX: 0.52, HAPROXY: 0.92},
    "handshake": {NGINX: 0.55, HAPROXY: 0.55},
    "reject": {NGINX: 0.85, HAPROXY: 0.85},
    "down-plain": {NGINX_TUNED: 0.92, HAPROXY_TUNED: 0.95},
    "down-tls": {NGINX_TUNED: 0.78, HAPROXY_TUNED: 0.58},
    "down-h2": {NGINX_TUNED: 0.88, HAPROXY_TUNED: 0.60},
    "up-tls": {NGINX: 0.75, HAPROXY: 0.70},
}

# The p99 at the fixed rate must not be worse than the better of these peers.
LATENCY = {case: (NGINX, HAPROXY) for case in ("rate-plain", "rate-tls", "rate-h2")}

# CPU per request, in microseconds.
MICROSECONDS = {"get_token": 20.0}

# Single targets, with the unit in the name.
IDLE_KIB = {"TLS": 12.0, "plain": 6.0}
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
