"""One million keys known, beside one thousand: what a key takes of memory, and what finding it costs."""

import targets
from cases import CONNECTIONS, QUERY, Case
from load import wrk
from processes import memory
from proxies import GATEWAY
from report import Section, table
from rounds import measure as take_turns

FEW, MANY = 1_000, 1_000_000
ASKED = 20_000  # keys that the load uses of the many, so that they are not all in a cache


def measure(bench, options):
    """Two gateways that differ in their keys alone, in turns."""
    section = Section("tokens-1m", f"{MANY:,} keys known, {ASKED:,} of them in use, beside {FEW:,}")
    hot, started, size = {}, [], {}
    for count in (FEW, MANY):
        _, hashes, hot[count] = bench.inputs.key_files(f"keys-{count}", count, ASKED)
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
    section.text += f"\n{each:.0f} bytes a key; a request costs {ratio:.2f} times as much among the many.\n"
    section.errors = rounds.errors()
    section.figures.update({"bytes a key": each, "ratio": ratio})
    section.judge("bytes a key", each, targets.TOKEN_BYTES)
    section.judge("CPU of a request among a million keys, by that among a thousand", ratio, targets.LOOKUP_RATIO)
    return section
