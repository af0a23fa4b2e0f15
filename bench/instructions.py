#!/usr/bin/env python3
"""Counts the instructions per request in the gateway, and compares them with the recorded counts.

The program runs under `valgrind --tool=callgrind`, with one worker and one client that sends one request after the other.
A count is the difference between a run with 2N requests and a run with N, so start, warm-up and shutdown cancel out.
It does not depend on the load of the machine, so it shows small regressions that a clock cannot distinguish from noise.
Only user space is counted: an additional system call is visible in `make bench` only.

More than 5 % above the count in instructions.json is a failure. BLESS=1 records the measured counts.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import types

import callgrind
from cases import QUERY
from idle import send
from inputs import Inputs
from load import h2load
from processes import Processes
from proxies import GATEWAY, Bench

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = pathlib.Path(__file__).with_name("instructions.json")
REQUESTS = 2000  # in the shorter run
TOLERANCE = 0.05
STOP_TIMEOUT = 60  # seconds; shutdown is slow under valgrind
SETTLE_TIME = 3.1  # seconds after which the gateway no longer re-reads its files because of their recent change time
FIRST_CHECK = 3  # seconds after the start in which the gateway checks its files twice, and reads them again once


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"default: all of them: {', '.join(CASES)}")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/instructions/timbr-gateway")
    parser.add_argument("--port", type=int, default=18700, help="first port; the ports above it are used (%(default)s)")
    options = parser.parse_args()
    for program in ("valgrind", "gcc", "openssl", "h2load"):
        if not shutil.which(program):
            raise SystemExit(f"error: {program} is missing; bench/setup installs it")
    folder = ROOT / "target" / "bench-instructions"
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes(folder)
    try:
        return compare(prepared(options, processes), options.cases or list(CASES))
    finally:
        processes.end_all()


def prepared(options, processes):
    """Starts an upstream, with a thousand keys and some bearers."""
    inputs = Inputs(processes.folder, 1000)
    inputs.make_bearers(options.binary)
    everywhere = os.sched_getaffinity(0)
    return Bench(processes, inputs, types.SimpleNamespace(
        binary=options.binary, compare=None, newest=False, port=options.port, threads=1, descriptors=1024, load_cores=everywhere,
        proxy_cores=everywhere))


def compare(bench, names):
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    counts, worse = {}, []
    for name in names:
        before = record.get("instructions", {}).get(name)
        counts[name] = count(bench, name)
        if before and counts[name] > before * (1 + TOLERANCE):
            # Measure again before it is reported as a regression.
            counts[name] = min(counts[name], count(bench, name))
        change = f", {counts[name] / before - 1:+.1%} compared with the recorded {before:,}" if before else ", no recorded count"
        print(f"{name}: {counts[name]:,} instructions per request{change}", flush=True)
        if not before or counts[name] > before * (1 + TOLERANCE):
            worse.append((name, before))
    if os.environ.get("BLESS"):
        RECORD.write_text(json.dumps({
            "measured_with": tools(), "instructions": {**record.get("instructions", {}), **counts}}, indent=1) + "\n")
        print(f"recorded in {RECORD.relative_to(ROOT)}")
        return 0
    for name, before in worse:
        print(complaint(name, counts[name], before, record), file=sys.stderr)
    return 1 if worse else 0


def complaint(name, now, before, record):
    """Describes the regression, and what to do about it."""
    if not before:
        return f"error: no count is recorded for {name}; record it with: BLESS=1 make instructions"
    text = (f"error: a request of {name} costs {now:,} instructions, {now / before - 1:.1%} more than the {before:,} "
            f"recorded in {RECORD.relative_to(ROOT)}; the tolerance is {TOLERANCE:.0%}. Find the cause "
            f"(callgrind_annotate target/bench-instructions/{name}.callgrind), or, if the change is worth the cost, record "
            "the new count with: BLESS=1 make instructions")
    was, here = record["measured_with"], tools()
    if was != here:
        text += f"\nnote: recorded with {', '.join(was)}; measured with {', '.join(here)}, which may be the cause"
    return text


def count(bench, name):
    """Instructions per request."""
    short, long = (instructions(bench, name, requests) for requests in (REQUESTS, 2 * REQUESTS))
    return round((long - short) / REQUESTS)


def instructions(bench, name, requests):
    """Instructions of one run of the gateway."""
    output = bench.processes.folder / f"{name}.callgrind"
    output.unlink(missing_ok=True)
    gateway = bench.start_gateway(GATEWAY, name, under=(
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", f"--log-file={output}.log"),
                                  delay=SETTLE_TIME)
    # Otherwise the reading would fall into the long run only, if the machine is slow.
    time.sleep(FIRST_CHECK)
    CASES[name](bench, gateway, requests)
    lines, _size = bench.stop(gateway, STOP_TIMEOUT)
    if gateway.process.returncode:
        raise RuntimeError(f"the gateway under valgrind exited with {gateway.process.returncode}; see {output}.log")
    # Start and shutdown log a few lines in addition to those of the requests.
    if lines < requests:
        raise RuntimeError(f"{name}: {requests} requests were sent, but only {lines} lines logged")
    return callgrind.cost(output)


def one_by_one(target, credential, status=200, body=True):
    """The same request repeatedly, over one HTTP/1.1 connection without TLS."""
    def run(bench, gateway, requests):
        content = bench.inputs.body.read_bytes() if body else b""
        head = (f"POST {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
                f"Content-Type: application/json\r\n{credential(bench.inputs)}Content-Length: {len(content)}\r\n\r\n")
        with socket.create_connection(("127.0.0.1", gateway.plain_port), 60) as connection:
            for _ in range(requests):
                received = send(connection, head.encode() + content)
                if received != status:
                    raise RuntimeError(f"{target} returned {received}")
    return run


def multiplexed(bench, gateway, requests):
    """The same, over one HTTP/2 connection with TLS, one stream after the other."""
    load = h2load(bench, gateway.tls + QUERY, "-c1", "-m1", "-n", requests)
    if load.errors:
        raise RuntimeError(f"{load.errors} requests failed")


CASES = {
    "forwarded": one_by_one(QUERY, lambda inputs: f"X-Api-Key: {inputs.one_key()}\r\n"),
    "forwarded-h2": multiplexed,
    "rejected": one_by_one(QUERY, lambda inputs: "", 401),
    "get_token": one_by_one("/timbr/api/get_token", lambda inputs: f"Authorization: Bearer {inputs.one_bearer()}\r\n",
                            body=False),
}


def tools():
    """Versions that affect the counts besides the code."""
    first = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]
    return [first("rustc", "--version"), first("valgrind", "--version"), first("uname", "-m")]


if __name__ == "__main__":
    sys.exit(main())
