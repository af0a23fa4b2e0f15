"""The loads that all proxies get in turn: each case is an entry here, and, if it has a target, one in targets.py."""

import dataclasses
import typing

from load import h2load, wrk
from proxies import GATEWAY, HAPROXY, HAPROXY_TUNED, NGINX, NGINX_TUNED, OLD

QUERY = "/timbr/openapi/ontology/sales/query"
BIG = f"{QUERY}/bytes/{10 << 20}"
BIG_COUNT = 80  # of 10 MiB each, for the cases of h2load
CONNECTIONS = 64

SMALL_PEERS = (GATEWAY, OLD, NGINX, HAPROXY)
BIG_PEERS = (*SMALL_PEERS, NGINX_TUNED, HAPROXY_TUNED)
ALONE = (GATEWAY, OLD)


@dataclasses.dataclass(frozen=True)
class Case:
    """A slice of load: `run(bench, proxy, options)` gives a `Load`."""

    name: str
    what: str
    run: typing.Callable
    proxies: tuple = SMALL_PEERS
    unit: str = "request"
    units: int = 1


def queries(scheme, **more):
    """POSTs of 200 bytes, answered with 300, with keys spread over all that are known."""
    def run(bench, proxy, options):
        settings = {"connections": CONNECTIONS, "credentials": bench.inputs.hot, **more}
        return wrk(bench, getattr(proxy, scheme) + settings.pop("target", QUERY), options.slice, **settings)
    return run


def streams(target, *arguments):
    """HTTP/2 over TLS, for as long as a slice lasts unless the arguments say how many."""
    def run(bench, proxy, options):
        until = [] if "-n" in arguments else ["-D", max(1, round(options.slice))]
        least = 9 << 20 if target == BIG else 200
        return h2load(bench, proxy.tls + target, *arguments, *until, least=least)
    return run


def uploads(bench, proxy, _options):
    """Requests of 10 MiB."""
    return h2load(bench, proxy.tls + QUERY, "--h1", "-c4", "-n", BIG_COUNT, body=bench.inputs.big_body)


def steady(scheme, *arguments):
    """A fixed, low rate over ten connections, for the latency."""
    def run(bench, proxy, options):
        each = max(1, options.rate // 10)
        count = max(1, round(each * options.slice)) * 10
        return h2load(bench, getattr(proxy, scheme) + QUERY, *arguments, "-c10", "--rps", each, "-n", count, log=True)
    return run


def tokens(scheme):
    """POST get_token: the bearer is opened, and the login's token given again."""
    def run(bench, proxy, options):
        return wrk(bench, f"{getattr(proxy, scheme)}/timbr/api/get_token", options.slice, CONNECTIONS,
                   credentials=bench.inputs.bearers, field="Authorization", prefix="Bearer ", body=False, least=150)
    return run


BIG_ANSWERS = {"target": BIG, "connections": 4, "least": 9 << 20}
CASES = [
    Case("plain-h1", "HTTP/1.1 without TLS, kept connections", queries("plain")),
    Case("tls-h1", "HTTP/1.1 over TLS 1.3, kept connections", queries("tls")),
    Case("tls-h2", "HTTP/2 over TLS 1.3, 8 connections of 16 streams", streams(QUERY, "-c8", "-m16")),
    Case("handshake", "a new TLS 1.3 connection for each request", queries("tls", connections=32, keep_alive=False)),
    Case("reject", "401, as there is no key; HTTP/1.1 over TLS 1.3, kept connections",
         queries("tls", credentials=None, refused=True, least=30)),
    Case("down-plain", "answers of 10 MiB without TLS, 4 connections", queries("plain", **BIG_ANSWERS), BIG_PEERS, "MiB", 10),
    Case("down-tls", "answers of 10 MiB over TLS 1.3, 4 connections", queries("tls", **BIG_ANSWERS), BIG_PEERS, "MiB", 10),
    Case("down-h2", "answers of 10 MiB over HTTP/2, 2 connections of 2 streams, windows of 1 MiB",
         streams(BIG, "-c2", "-m2", "-w20", "-W20", "-n", BIG_COUNT), BIG_PEERS, "MiB", 10),
    Case("up-tls", "requests of 10 MiB over TLS 1.3, 4 connections", uploads, BIG_PEERS, "MiB", 10),
    Case("rate-plain", "a fixed rate over 10 connections, HTTP/1.1 without TLS", steady("plain", "--h1")),
    Case("rate-tls", "a fixed rate over 10 connections, HTTP/1.1 over TLS 1.3", steady("tls", "--h1")),
    Case("rate-h2", "a fixed rate over 10 connections, HTTP/2 over TLS 1.3", steady("tls")),
    Case("get_token", "a bearer opened and its login's token given again; HTTP/1.1 without TLS", tokens("plain"), ALONE),
    Case("get_token-tls", "the same over TLS 1.3", tokens("tls"), ALONE),
]
