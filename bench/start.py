"""Time from the start of the program to the first successful response of /readyz."""

import http.client
import statistics
import time

import targets
from cases import ALONE
from proxies import GATEWAY
from report import Section, table

STARTS = 11


def measure(bench, options):
    """Measures with an empty keys file, and with all keys."""
    section = Section("cold-start", f"milliseconds from exec to ready, median of {STARTS}")
    nothing = bench.processes.folder / "no-keys.sha256"
    nothing.write_text("")
    rows = []
    for name in [name for name in ALONE if name in bench.running]:
        for keys, hashes in ((0, nothing), (options.keys, bench.inputs.hashes)):
            took = [_start(bench, name, hashes) for _ in range(STARTS)]
            median = statistics.median(took)
            rows.append([name, f"{keys:,}", f"{median:.1f}", f"{min(took):.1f}–{max(took):.1f}"])
            section.figures[f"{name} {keys} keys ms"] = median
            if name == GATEWAY:
                section.judge(f"ms with {keys:,} keys in tokens.keys_file", median, targets.START_MS)
    section.text = table(["gateway", "keys known", "ms", "min–max"], rows)
    return section


def _start(bench, name, hashes):
    begun = time.monotonic()
    proxy = bench.start_gateway(name, "started", wait=False, hashes=hashes)
    while not _is_ready(proxy.admin_port):
        if proxy.process.poll() is not None or time.monotonic() - begun > 30:
            raise RuntimeError("the gateway did not become ready")
    took = (time.monotonic() - begun) * 1000
    bench.stop(proxy)
    return took


def _is_ready(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        time.sleep(0.0005)
        return False
    finally:
        connection.close()
