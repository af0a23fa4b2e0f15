"""One million keys compared with one thousand: memory per key, and the cost of a lookup."""

import targets
from cases import CONNECTIONS, QUERY, Case
from load import wrk
from processes import memory
from proxies import GATEWAY
from report import Section, table
from rounds import measure as take_turns

FEW, MANY = 1_000, 1_000_000
USED = 20_000  # keys of the million that the load uses, so that they do not all fit into a cache


def measure(bench, options):
    """Compares two gateways that differ only in their keys."""
    section = Section("tokens-1m", f"{MANY:,} keys known, {USED:,} of them used by the load, compared with {FEW:,}")
    hot, started, size = {}, [], {}
    for count in (FEW, MANY):
        _, hashes, hot[count] = bench.inputs.key_files(f"keys-{count}", count, USED)
        proxy = bench.start_gateway(GATEWAY, f"keys-{count}", hashes=hashes)
        bench.running[proxy.name] = proxy
        started.append((count, proxy))
        size[count] = memory(proxy.pid)

    def queries(bench, proxy, options):
        credentials = hot[MANY if proxy is started[1][1] else FEW]
        return wrk(bench, proxy.plain + QUERY, options.slice, CONNECTIONS, credentials)

    names = [proxy.name for _, proxy in started]
    rounds = take_turns(bench, Case("tokens-1m", "", queries, tuple(names)), options)
    for _, proxy in started:
        del bench.running[proxy.name]
        bench.stop(proxy)
    each = (size[MANY] - size[FEW]) / (MANY - FEW)
    ratio = rounds.ratio(names[1], names[0])
    rows = [[f"{count:,}", f"{size[count] / (1 << 20):.1f}", f"{rounds.median(name, 'cpu'):.2f}",
             "{:.2f}–{:.2f}".format(*rounds.span(name, "cpu"))] for name, count in zip(names, (FEW, MANY))]
    section.text = table(["keys", "resident MiB", "CPU µs a request", "min–max"], rows)
    section.text += f"\n{each:.0f} bytes per key; a request costs {ratio:.2f} times as much with a million keys.\n"
    section.errors = rounds.errors()
    section.figures.update({"bytes a key": each, "ratio": ratio})
    section.judge("bytes a key", each, targets.TOKEN_BYTES)
    section.judge("CPU per request with a million keys, divided by that with a thousand", ratio, targets.LOOKUP_RATIO)
    return section
