"""Resident memory per idle connection, after one request on each."""

import contextlib
import re
import socket
import ssl
import time

import targets
from cases import QUERY, SMALL_PEERS
from processes import memory
from proxies import GATEWAY
from report import Section, table

# The self-signed certificate was made for this run.
UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNVERIFIED.check_hostname, UNVERIFIED.verify_mode = False, ssl.CERT_NONE

SETTLE = 4  # seconds for a proxy to release memory that an idle connection does not need


def measure(bench, options):
    """Measures each proxy with idle connections, over TLS and without. Each measurement uses a new process."""
    section = Section("idle", f"{options.idle:,} idle connections, after one request on each: KiB per connection")
    rows = []
    for name in [name for name in SMALL_PEERS if name in bench.running]:
        row = [name]
        for kind in ("TLS", "plain"):
            proxy = bench.start(name, f"{name}-idle")
            before = memory(proxy.pid)
            with held(bench, proxy, kind, options.idle) as count_responses:
                time.sleep(SETTLE)
                each = (memory(proxy.pid) - before) / options.idle / 1024
                still = count_responses()
            bench.stop(proxy)
            row += [f"{each:.1f}", f"{still}"]
            section.figures[f"{name} {kind} KiB"] = each
            if name == GATEWAY:
                section.judge(f"KiB a {kind} connection", each, targets.IDLE_KIB[kind])
        rows.append(row)
    heads = ["proxy", "TLS, KiB each", "usable of 50", "plain, KiB each", "usable of 50"]
    section.text = table(heads, rows)
    return section


@contextlib.contextmanager
def held(bench, proxy, kind, count):
    """Opens the connections and keeps them open. Yields a function that sends a second request on fifty of them."""
    request = _request(bench)
    connections = []
    try:
        for number in range(count):
            connections.append(_connect(proxy, kind, number))
            send(connections[-1], request)
        yield lambda: sum(send(each, request) == 200 for each in connections[:: max(1, count // 50)][:50])
    finally:
        for connection in connections:
            connection.close()
        time.sleep(1)


def _connect(proxy, kind, number):
    port = proxy.tls_port if kind == "TLS" else proxy.plain_port
    # A separate source address for each 5,000 connections, because the range of local ports is small.
    connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(f"127.0.0.{2 + number // 5000}", 0))
    # Otherwise the request waits until the end of the handshake is acknowledged, for 40 ms with some proxies.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind == "plain":
        return connection
    return UNVERIFIED.wrap_socket(connection)


def _request(bench):
    body = bench.inputs.body.read_bytes()
    head = (f"POST {QUERY} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"X-Api-Key: {bench.inputs.one_key()}\r\nContent-Length: {len(body)}\r\n\r\n")
    return head.encode() + body


def send(connection, request):
    """Sends a request, reads the complete response, and returns its status."""
    connection.sendall(request)
    got = b""
    while True:
        piece = connection.recv(65536)
        if not piece:
            raise RuntimeError(f"the connection was closed after {got[:200]!r}")
        got += piece
        head, found, body = got.partition(b"\r\n\r\n")
        if found and len(body) >= int(re.search(rb"content-length: *(\d+)", head, re.I)[1]):
            return int(head.split(b" ", 2)[1])
