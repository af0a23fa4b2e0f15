#!/usr/bin/env python3
"""Counts the instructions that a request costs the gateway, and compares them with those recorded.

The whole program runs under `valgrind --tool=callgrind`, with one worker and one client that asks one thing after the
other. A count is the difference of a run with twice as many requests and one with so many: start, warm-up and end fall
out of it. It does not depend on how busy the machine is, so a small loss shows that no clock would tell from noise.
Only user space is counted: a system call more does not show here, but in `make bench`.

Over 5 % more than recorded in instructions.json is a failure. BLESS=1 records what is measured.
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import types

import callgrind
from cases import QUERY
from idle import ask
from inputs import Inputs
from load import h2load
from processes import Processes
from proxies import GATEWAY, Bench

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = pathlib.Path(__file__).with_name("instructions.json")
REQUESTS = 2000  # of the shorter run
TOLERANCE = 0.05
PATIENCE = 60  # seconds for the gateway to end, which takes long under valgrind
SETTLED = 3.1  # seconds after which the gateway does not read its files again for being young, once more or once less


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"all of them unless given: {', '.join(CASES)}")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/instructions/timbr-gateway")
    parser.add_argument("--port", type=int, default=18700, help="the ports after it are used (%(default)s)")
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
    """An upstream, a thousand keys and some bearers."""
    inputs = Inputs(processes.folder, 1000)
    inputs.make_bearers(options.binary)
    everywhere = os.sched_getaffinity(0)
    return Bench(processes, inputs, types.SimpleNamespace(
        binary=options.binary, compare=None, port=options.port, threads=1, descriptors=1024, load_cores=everywhere,
        proxy_cores=everywhere))


def compare(bench, names):
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    counts, worse = {}, []
    for name in names:
        before = record.get("instructions", {}).get(name)
        counts[name] = count(bench, name)
        if before and counts[name] > before * (1 + TOLERANCE):
            # Once more, before anything is said about it.
            counts[name] = min(counts[name], count(bench, name))
        beside = f", {counts[name] / before - 1:+.1%} beside the {before:,} recorded" if before else ", nothing is recorded"
        print(f"{name}: {counts[name]:,} instructions a request{beside}", flush=True)
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
    """What is wrong, and what to do."""
    if not before:
        return f"error: no count is recorded for {name}; record it with: BLESS=1 make instructions"
    text = (f"error: a request of {name} costs {now:,} instructions, {now / before - 1:.1%} more than the {before:,} "
            f"recorded in {RECORD.relative_to(ROOT)}; at most {TOLERANCE:.0%} more is taken. Find out where they go "
            f"(callgrind_annotate target/bench-instructions/{name}.callgrind), or, if the change is worth them, record "
            "the new figure with: BLESS=1 make instructions")
    was, here = record["measured_with"], tools()
    if was != here:
        text += f"\nnote: recorded with {', '.join(was)}; here are {', '.join(here)}, which may be what it is about"
    return text


def count(bench, name):
    """Instructions a request."""
    short, long = (instructions(bench, name, requests) for requests in (REQUESTS, 2 * REQUESTS))
    return round((long - short) / REQUESTS)


def instructions(bench, name, requests):
    """Instructions of a whole run of the gateway."""
    output = bench.processes.folder / f"{name}.callgrind"
    output.unlink(missing_ok=True)
    gateway = bench.start_gateway(GATEWAY, name, under=(
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", f"--log-file={output}.log"),
                                  rest=SETTLED)
    CASES[name](bench, gateway, requests)
    lines = bench.stop(gateway, PATIENCE)
    if gateway.process.returncode:
        raise RuntimeError(f"under valgrind the gateway ended with {gateway.process.returncode}; see {output}.log")
    # Besides those of the requests there are a few, of start and end.
    if lines < requests:
        raise RuntimeError(f"{name}: {requests} requests were sent, and {lines} lines logged")
    return callgrind.cost(output)


def one_by_one(target, credential, status=200, body=True):
    """The same request again and again, over one connection of HTTP/1.1 without TLS."""
    def run(bench, gateway, requests):
        content = bench.inputs.body.read_bytes() if body else b""
        head = (f"POST {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
                f"Content-Type: application/json\r\n{credential(bench.inputs)}Content-Length: {len(content)}\r\n\r\n")
        with socket.create_connection(("127.0.0.1", gateway.plain_port), 60) as connection:
            for _ in range(requests):
                answered = ask(connection, head.encode() + content)
                if answered != status:
                    raise RuntimeError(f"{target} was answered {answered}")
    return run


def multiplexed(bench, gateway, requests):
    """The same, over one connection of HTTP/2 with TLS, one stream after the other."""
    load = h2load(bench, gateway.tls + QUERY, "-c1", "-m1", "-n", requests)
    if load.errors:
        raise RuntimeError(f"{load.errors} requests failed")


CASES = {
    "forwarded": one_by_one(QUERY, lambda inputs: f"X-Api-Key: {inputs.one_key()}\r\n"),
    "forwarded-h2": multiplexed,
    "refused": one_by_one(QUERY, lambda inputs: "", 401),
    "get_token": one_by_one("/timbr/api/get_token", lambda inputs: f"Authorization: Bearer {inputs.one_bearer()}\r\n",
                            body=False),
}


def tools():
    """What the counts depend on besides the code."""
    first = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]
    return [first("rustc", "--version"), first("valgrind", "--version"), first("uname", "-m")]


if __name__ == "__main__":
    sys.exit(main())
