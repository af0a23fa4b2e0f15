#!/usr/bin/env python3
"""Writes the measured tables of docs/scaling.md from bench/results/NAME.json, and measures the memory of a token.

    bench/scaling.py NAME

All computation is in this file, so that the page and the results stay consistent.
"""

import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys

from report import table

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scaling.md"
NEEDED = ("plain-h1", "tls-h1", "tls-h2", "handshake", "reject", "get_token", "down-tls", "up-tls", "idle", "tokens-1m",
          "cold-start", "log")

UTILIZATION = 0.6  # of a core, at most: reserve for a failing node, for bursts, and for tail latency
CORES = 8  # per node
RATES = (10_000, 100_000, 1_000_000)
TOKEN_BENCH = ("bench", "--locked", "--profile", "instructions", "--bench", "tokens")
CLIENTS = {
    "persistent connections, HTTP/1.1": "tls-h1",
    "persistent connections, HTTP/2": "tls-h2",
    "a connection for each request": "handshake",
}


def main(name):
    path = ROOT / "bench" / "results" / f"{name}.json"
    figures = json.loads(path.read_text())
    missing = [case for case in NEEDED if case not in figures]
    if missing:
        raise SystemExit(f"error: {path.relative_to(ROOT)} lacks {', '.join(missing)}; make bench measures them")
    text = PAGE.read_text()
    for part, rows in (("units", units(figures)), ("fleets", fleets(figures)), ("load", load(figures))):
        begin, end = f"<!-- measured: {part} -->\n", f"<!-- measured: end {part} -->"
        found = re.search(re.escape(begin) + ".*?" + re.escape(end), text, re.S)
        text = text.replace(found[0], f"{begin}{rows}{end}")
    PAGE.write_text(text)
    print(f"written: {PAGE.relative_to(ROOT)}, from {path.relative_to(ROOT)}")


def token_bytes():
    """Resident memory per minted token."""
    output = subprocess.run([os.environ.get("CARGO", "cargo"), *TOKEN_BENCH], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return int(re.search(r"minted tokens take (\d+) bytes each", output)[1])


def micros(figures, case):
    """CPU time of the gateway for one unit of a case's work."""
    return statistics.median(each["cpu"] for each in figures[case]["gateway"])


def units(figures):
    """The cost of one unit of each kind of work."""
    cpu = lambda case: f"{micros(figures, case):.1f} µs"
    of_a_core = lambda case: f"{1e6 / micros(figures, case):,.0f} per second"
    idle = figures["idle"]
    start = figures["cold-start"]
    return table(["unit", "cost", "capacity of one core", "case"], [
        ["request, persistent connection, TLS", cpu("tls-h1"), of_a_core("tls-h1"), "`tls-h1`"],
        ["request, persistent connection, without TLS", cpu("plain-h1"), of_a_core("plain-h1"), "`plain-h1`"],
        ["request, HTTP/2", cpu("tls-h2"), of_a_core("tls-h2"), "`tls-h2`"],
        ["request with a new TLS connection", cpu("handshake"), of_a_core("handshake"), "`handshake`"],
        ["rejection, persistent connection", cpu("reject"), of_a_core("reject"), "`reject`"],
        ["`get_token`, `salt-holder`", cpu("get_token"), of_a_core("get_token"), "`get_token`"],
        ["MiB of a response, TLS", cpu("down-tls"), f"{1e6 / micros(figures, 'down-tls'):,.0f} MiB per second", "`down-tls`"],
        ["MiB of a request, TLS", cpu("up-tls"), f"{1e6 / micros(figures, 'up-tls'):,.0f} MiB per second", "`up-tls`"],
        ["idle connection, TLS", f"{idle['gateway TLS KiB']:.1f} KiB", "", "`idle`"],
        ["idle connection, without TLS", f"{idle['gateway plain KiB']:.1f} KiB", "", "`idle`"],
        ["key of `tokens.keys_file`", f"{figures['tokens-1m']['bytes a key']:.0f} B", "", "`tokens-1m`"],
        ["minted token", f"{token_bytes()} B", "", "`make micro`"],
        ["start", f"{next(iter(start.values())):.0f} ms", "", "`cold-start`"],
    ])


def fleets(figures):
    """Cores and nodes for each rate and kind of client."""
    rows = []
    for what, case in CLIENTS.items():
        row = [what]
        for rate in RATES:
            cores = rate * micros(figures, case) / 1e6 / UTILIZATION
            nodes = max(1, math.ceil(cores / CORES)) + 1
            row.append(f"{cores:.1f} cores: {nodes} nodes" if cores >= 1 else f"{cores:.2f} cores: {nodes} nodes")
        rows.append(row)
    return table(["clients", *(f"{rate:,} requests/s" for rate in RATES)], rows)


def load(figures):
    """Load on the network, the log and the backend, for each rate."""
    small = micros(figures, "tls-h1")
    more = micros(figures, "down-tls") * 100 / 1024
    wire = statistics.median(each["wire"] for each in figures["tls-h1"]["gateway"])
    line = figures["log"]["bytes a line"]
    rows = [
        ["network, small responses", *(f"{rate * wire * 8 / 1e9:.1f} Gbit/s" for rate in RATES)],
        ["network, responses of 100 KiB", *(f"{rate * (wire + 2 * 100 * 1024) * 8 / 1e9:,.0f} Gbit/s" for rate in RATES)],
        ["cores for responses of 100 KiB, persistent connections", *(f"{rate * (small + more) / 1e6 / UTILIZATION:,.1f}" for rate in RATES)],
        ["access log", *(f"{rate * line / 1e6:,.1f} MB/s" for rate in RATES)],
        ["access log per day", *(f"{rate * line * 86_400 / 1e12:,.2f} TB" for rate in RATES)],
        ["backend cores, at 2 ms per query", *(f"{rate * 0.002:,.0f}" for rate in RATES)],
        ["requests in flight, at 100 ms per query", *(f"{rate * 0.1:,.0f}" for rate in RATES)],
        ["requests in flight, at 10 s per query", *(f"{rate * 10:,.0f}" for rate in RATES)],
    ]
    return table(["", *(f"{rate:,} requests/s" for rate in RATES)], rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
