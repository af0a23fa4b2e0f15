#!/usr/bin/env python3
"""Compares the gateway with nginx, HAProxy, Envoy and Pingora on the same workload, and checks its targets.

The proxies are pinned to one core, load generator and upstream to the other. They are measured one after the other in each
round. The metric is CPU time per request: it is stable on a noisy machine, where requests per second are not. All traffic
uses the loopback interface. Writes bench/results/NAME.md, .png and .json.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import sys
import time

import idle
import plot
import report
import rounds
import scale
import start
import stream
import tokens
from cases import CASES
from inputs import Inputs
from processes import Processes, raise_descriptors
from proxies import GATEWAY, NEWEST_ONLY, OLD, PEERS, PROGRAMS, Bench, program_of, versions
from verify import verify

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPECIAL = {"tokens-1m": tokens.measure, "idle": idle.measure, "stream-1g": stream.measure, "cold-start": start.measure,
           "scale": scale.measure}
BY_NAME = {case.name: case for case in CASES}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"default: all of them: {', '.join([*BY_NAME, *SPECIAL])}")
    add("--binary", type=pathlib.Path, default=ROOT / "target/trained/timbr-gateway", help="the gateway (%(default)s)")
    add("--compare", type=pathlib.Path, metavar="OLD_BINARY", help="a second gateway to compare with")
    add("--compare-options", type=pathlib.Path, metavar="FILE",
        help="YAML with sections that gateway.yaml does not have, such as limits, for the second gateway: to measure their cost")
    add("--no-peers", action="store_true", help="without the other proxies")
    add("--system-peers", dest="newest", action="store_false",
        help="nginx and HAProxy as the system has them, instead of the newest ones")
    add("--name", default="local", help="name of the results (%(default)s)")
    add("--rounds", type=int, default=5, help="rounds of each case (%(default)s)")
    add("--slice", type=float, default=3.0, help="seconds per proxy and round (%(default)s)")
    add("--rate", type=int, default=1000, help="requests per second of the cases rate-* (%(default)s)")
    add("--keys", type=int, default=100_000, help="keys known to each proxy (%(default)s)")
    add("--idle", type=int, default=10_000, help="connections in the case idle (%(default)s)")
    add("--threads", type=int, default=1, help="workers of each proxy, on as many cores (%(default)s)")
    add("--port", type=int, default=18100, help="first port; the ports above it are used (%(default)s)")
    options = parser.parse_args()
    if options.compare_options and not options.compare:
        options.compare = options.binary
    unknown = set(options.cases) - set(BY_NAME) - set(SPECIAL)
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    return options


def fitted(options):
    """Returns the options, adapted to this machine."""
    for binary in filter(None, (options.binary, options.compare)):
        if not binary.is_file():
            raise SystemExit(f"error: {binary} is missing; build it with: make release")
    os.environ["PATH"] += ":/usr/sbin"
    for program in ("gcc", "openssl", "wrk", "h2load", "curl", "gnuplot"):
        if not shutil.which(program):
            raise SystemExit(f"error: {program} is missing; bench/setup installs it")
    options.peers = [] if options.no_peers else [peer for peer in PEERS if options.newest or peer not in NEWEST_ONLY]
    for program in PROGRAMS:
        if program in options.peers and not program_of(program, options.newest):
            raise SystemExit(f"error: {program} is missing; bench/setup installs it")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: two cores are needed, one for the proxy and one for the load")
    # The load generator gets the first core, which also handles most interrupts.
    options.load_cores = {cores[0]} if options.threads < len(cores) else set(cores)
    options.proxy_cores = set(cores[-options.threads:])
    os.sched_setaffinity(0, options.load_cores)
    options.descriptors = raise_descriptors()
    # A proxy may need a second descriptor for each client; the gateway accepts no more clients than that allows.
    options.idle = min(options.idle, options.descriptors // 2 - 500)
    return options


def main():
    options = fitted(arguments())
    folder = ROOT / "target" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    # The workers of nginx run as the user `nobody`.
    folder.chmod(0o755)
    processes = Processes(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return measure(options, processes)
    finally:
        processes.end_all()


def measure(options, processes):
    facts = versions(options.binary, options.newest)
    for name, text in facts:
        print(f"{name}: {text}", flush=True)
    inputs = Inputs(processes.folder, options.keys)
    inputs.make_bearers(options.binary)
    bench = Bench(processes, inputs, options)
    bench.start_all([GATEWAY] + ([OLD] if options.compare else []) + options.peers)
    for proxy in bench.running.values():
        verify(bench, proxy)

    sections = []
    for name in options.cases or [*BY_NAME, *SPECIAL]:
        if name in BY_NAME:
            section = report.section_of(rounds.measure(bench, BY_NAME[name], options))
        else:
            section = SPECIAL[name](bench, options)
        sections.append(section)
        print(f"\n{section.markdown()}", flush=True)

    notes, log_line = notes_of(bench, options)
    print()
    for note in notes:
        print(note)
    write(options, facts, notes, sections, log_line)
    return verdict(sections)


def notes_of(bench, options):
    """Describes the measurement, and reports dropped log lines. Also returns the bytes of a log line."""
    gateway = bench.running[GATEWAY]
    dropped = gateway.metric("log_lines_dropped_total")
    lines, size = bench.stop(gateway)
    notes = [
        f"command: `bench/run.py{''.join(' ' + each for each in sys.argv[1:])}`, {time.strftime('%Y-%m-%d')}",
        f"{options.rounds} rounds of {options.slice:g} s each, after a warm-up round; values are medians, ratios are "
        f"the median of each round's ratio, and a difference within 5 % is a tie",
        f"each proxy has {options.threads} worker{'s' if options.threads > 1 else ''} and knows {options.keys:,} keys; "
        f"all write an access log to a pipe that is read; the gateway wrote {lines:,} lines and dropped {dropped}",
        f"the limit of open files is {options.descriptors:,}, of which a proxy may need two for each client",
    ]
    return notes, size / max(1, lines)


def write(options, facts, notes, sections, log_line):
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    picture = results / f"{options.name}.png"
    drawn = plot.draw(sections, picture)
    text = report.document(f"Measured: {options.name}", facts, notes, sections, picture.name if drawn else None)
    (results / f"{options.name}.md").write_text(text)
    figures = {section.name: section.figures for section in sections} | {"log": {"bytes a line": log_line}}
    (results / f"{options.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\nwritten: {results.relative_to(ROOT)}/{options.name}.md")


def verdict(sections):
    """Prints each target and returns the exit code. Errors fail the run; a missed target does not."""
    for section in sections:
        for each in section.verdicts:
            print("  ".join(each.row()))
    broken = [section.name for section in sections if section.errors]
    if broken:
        print(f"error: requests failed in {', '.join(broken)}: their results are invalid", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
