"""What the gateway is to reach, with everything switched on. A case of a run is met or missed by these figures alone."""

import dataclasses

from proxies import HAPROXY, HAPROXY_TUNED, NGINX, NGINX_TUNED

# CPU of the gateway as a part of a peer's, for the same work.
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

# p99 at the fixed rate is to be no worse than the better of these.
LATENCY = {case: (NGINX, HAPROXY) for case in ("rate-plain", "rate-tls", "rate-h2")}

# CPU of a request, in microseconds.
MICROSECONDS = {"get_token": 20.0}

# Of one kind each; their units are in their names.
IDLE_KIB = {"TLS": 12.0, "plain": 6.0}
TOKEN_BYTES = 250
LOOKUP_RATIO = 1.5
STREAM_GROWTH_MIB = 2.0
START_MS = 50.0
SCALE_RATIO = 1.10


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A figure beside what it is to be at most."""

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
