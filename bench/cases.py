"""The cases that all proxies run. Each case is an entry here and, if it has a target, in targets.py."""

import dataclasses
import typing

from load import h2load, mix, resume, wrk
from proxies import GATEWAY, HAPROXY_TUNED, NGINX_TUNED, OLD, PROGRAMS

QUERY = "/timbr/openapi/ontology/sales/query"
BIG = f"{QUERY}/bytes/{10 << 20}"
BIG_COUNT = 80  # messages of 10 MiB, for the cases that use h2load
CONNECTIONS = 64

SMALL_PEERS = (GATEWAY, OLD, *PROGRAMS)
BIG_PEERS = (*SMALL_PEERS, NGINX_TUNED, HAPROXY_TUNED)
ALONE = (GATEWAY, OLD)


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload: `run(bench, proxy, options)` returns a `Load`."""

    name: str
    what: str
    run: typing.Callable
    proxies: tuple = SMALL_PEERS
    unit: str = "request"
    units: int = 1


def queries(scheme, **more):
    """POST requests of 200 bytes with responses of 300, using keys spread over all known keys."""
    def run(bench, proxy, options):
        settings = {"connections": CONNECTIONS, "credentials": bench.inputs.hot, **more}
        return wrk(bench, getattr(proxy, scheme) + settings.pop("target", QUERY), options.slice, **settings)
    return run


def streams(target, *arguments):
    """HTTP/2 over TLS, for the duration of a slice, or for the number of requests in the arguments."""
    def run(bench, proxy, options):
        until = [] if "-n" in arguments else ["-D", max(1, round(options.slice))]
        least = 9 << 20 if target == BIG else 200
        return h2load(bench, proxy.tls + target, *arguments, *until, least=least)
    return run


def uploads(bench, proxy, _options):
    """Requests of 10 MiB."""
    return h2load(bench, proxy.tls + QUERY, "--h1", "-c4", "-n", BIG_COUNT, body=bench.inputs.big_body)


def steady(scheme, *arguments, connections=10, times=1):
    """A fixed rate, to measure latency: `times` the rate of the options."""
    def run(bench, proxy, options):
        each = max(1, times * options.rate // connections)
        count = max(1, round(each * options.slice)) * connections
        return h2load(bench, getattr(proxy, scheme) + QUERY, *arguments, f"-c{connections}", "--rps", each, "-n", count, log=True)
    return run


def resumptions(bench, proxy, options):
    """A new TLS connection for each request, each of which resumes the session of the one before."""
    return resume(bench, proxy, options.slice)


def realistic(bench, proxy, options):
    """Nine of ten responses have 300 bytes, the tenth 1, 4 or 10 MiB."""
    large = [f"{QUERY}/bytes/{mib << 20}" for mib in (1, 4, 10)]
    return mix(bench, proxy, options.slice, [target for each in large for target in (*[QUERY] * 9, each)])


def tokens(scheme):
    """POST get_token: the bearer is decrypted, and the existing token of the login returned."""
    def run(bench, proxy, options):
        return wrk(bench, f"{getattr(proxy, scheme)}/timbr/api/get_token", options.slice, CONNECTIONS,
                   credentials=bench.inputs.bearers, header="Authorization", prefix="Bearer ", body=False, least=150)
    return run


BUSY = {"connections": CONNECTIONS, "times": 15}
BIG_RESPONSES = {"target": BIG, "connections": 4, "least": 9 << 20}
CASES = [
    Case("plain-h1", "HTTP/1.1 without TLS, persistent connections", queries("plain")),
    Case("tls-h1", "HTTP/1.1 over TLS 1.3, persistent connections", queries("tls")),
    Case("tls-h2", "HTTP/2 over TLS 1.3, 8 connections of 16 streams", streams(QUERY, "-c8", "-m16")),
    Case("handshake", "a new TLS 1.3 connection for each request", queries("tls", connections=32, keep_alive=False)),
    Case("resume", "a new TLS 1.3 connection for each request, which resumes the session of the one before", resumptions),
    Case("mix", "one of ten responses has 1 to 10 MiB; half of the clients use HTTP/2, all use TLS 1.3", realistic, BIG_PEERS),
    Case("reject", "401 for a missing key; HTTP/1.1 over TLS 1.3, persistent connections",
         queries("tls", credentials=None, rejected=True, least=30)),
    Case("down-plain", "responses of 10 MiB without TLS, 4 connections", queries("plain", **BIG_RESPONSES), BIG_PEERS, "MiB", 10),
    Case("down-tls", "responses of 10 MiB over TLS 1.3, 4 connections", queries("tls", **BIG_RESPONSES), BIG_PEERS, "MiB", 10),
    Case("down-h2", "responses of 10 MiB over HTTP/2, 2 connections of 2 streams, windows of 1 MiB",
         streams(BIG, "-c2", "-m2", "-w20", "-W20", "-n", BIG_COUNT), BIG_PEERS, "MiB", 10),
    Case("up-tls", "requests of 10 MiB over TLS 1.3, 4 connections", uploads, BIG_PEERS, "MiB", 10),
    Case("rate-plain", "a fixed rate over 10 connections, HTTP/1.1 without TLS", steady("plain", "--h1")),
    Case("rate-tls", "a fixed rate over 10 connections, HTTP/1.1 over TLS 1.3", steady("tls", "--h1")),
    Case("rate-h2", "a fixed rate over 10 connections, HTTP/2 over TLS 1.3", steady("tls")),
    Case("busy-plain", "15 times this rate over 64 connections, HTTP/1.1 without TLS", steady("plain", "--h1", **BUSY)),
    Case("busy-tls", "15 times this rate over 64 connections, HTTP/1.1 over TLS 1.3", steady("tls", "--h1", **BUSY)),
    Case("get_token", "a bearer decrypted, the existing token returned; HTTP/1.1 without TLS", tokens("plain"), ALONE),
    Case("get_token-tls", "the same over TLS 1.3", tokens("tls"), ALONE),
]
