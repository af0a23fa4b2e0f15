"""Two workers on two cores compared with one worker on one core: cost per request, and distribution of connections.

The load generator runs on the same two cores, so requests per second are not meaningful here. CPU per request is: it gives the
throughput of a core that does nothing else.
"""

import os
import pathlib
import re

import targets
from cases import CONNECTIONS, Case, queries
from idle import held
from proxies import GATEWAY
from report import Section, table
from rounds import measure as take_turns

SPREAD = 1000  # connections


def measure(bench, options):
    """Measures one and two workers."""
    section = Section("scale", "2 workers on 2 cores compared with 1 worker on 1 core")
    both = bench.proxy_cores | bench.load_cores
    if len(both) < 2:
        section.text = "Needs two cores.\n"
        return section
    started = [bench.start_gateway(GATEWAY, "1-worker", workers=1),
               bench.start_gateway(GATEWAY, "2-workers", cores=both, workers=2)]
    names = [proxy.name for proxy in started]
    bench.running.update(zip(names, started))
    rows = []
    for case in [Case(f"scale-{scheme}", scheme, queries(scheme, connections=CONNECTIONS), tuple(names))
                 for scheme in ("plain", "tls")]:
        rounds = take_turns(bench, case, options)
        ratio = rounds.ratio(names[1], names[0])
        rows.append([f"{case.what}, HTTP/1.1", *(f"{rounds.median(name, 'cpu'):.2f}" for name in names), f"{ratio:.2f}"])
        section.errors += rounds.errors()
        section.figures[f"{case.what} ratio"] = ratio
        section.judge(f"CPU per request with 2 workers, divided by that with 1; {case.what}", ratio, targets.SCALE_RATIO)
    section.text = table(["CPU µs a request", *names, "ratio"], rows)
    with held(bench, started[1], "plain", SPREAD):
        counts = connections_by_worker(started[1])
    section.figures["connections by worker"] = counts
    section.text += f"\n{SPREAD} connections are distributed over the two workers as {' and '.join(map(str, counts))}.\n"
    for proxy in started:
        del bench.running[proxy.name]
        bench.stop(proxy)
    return section


def connections_by_worker(proxy):
    """The number of clients of each worker: the sockets of the listening port that each epoll instance watches."""
    clients = _clients_sockets(proxy.plain_port)
    process = pathlib.Path(f"/proc/{proxy.pid}")
    inode_of = {}
    for entry in (process / "fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
        if found:
            inode_of[int(entry.name)] = found[1]
    pollers = set()  # sets of client sockets; an epoll instance may have two descriptors with the same set
    for entry in (process / "fdinfo").iterdir():
        watched = map(int, re.findall(r"^tfd:\s+(\d+)", entry.read_text(), re.M))
        pollers.add(frozenset(each for each in watched if inode_of.get(each) in clients))
    return sorted(len(each) for each in pollers if each)


def _clients_sockets(port):
    """Inodes of the established sockets with this local port."""
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == "01"}
