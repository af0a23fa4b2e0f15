"""Resident memory while a response of 1 GiB is streamed to a fast client and to a slow one."""

import threading
import time

import targets
from cases import ALONE, QUERY
from processes import memory, run_on
from proxies import GATEWAY
from report import Section, table

SIZE = 1 << 30
CLIENTS = {
    "HTTP/1.1, TLS, as fast as it goes": ["--http1.1"],
    "HTTP/2, as fast as it goes": ["--http2"],
    "HTTP/1.1, TLS, 200 MiB/s": ["--http1.1", "--limit-rate", "200M"],
}


def measure(bench, _options):
    """Measures the peak growth of memory."""
    section = Section("stream-1g", "a response of 1 GiB: resident memory in MiB, sampled every 5 ms")
    rows = []
    for name in ALONE:
        proxy = bench.running.get(name)
        for client, arguments in CLIENTS.items() if proxy else ():
            # The first response lets the gateway allocate its buffers.
            _download(bench, proxy, arguments, 64 << 20)
            before = memory(proxy.pid)
            peak, samples, seconds = _watch(proxy.pid, lambda: _download(bench, proxy, arguments, SIZE))
            growth = (peak - before) / (1 << 20)
            rows.append([name, client, f"{before / (1 << 20):.1f}", f"{peak / (1 << 20):.1f}", f"{growth:.1f}",
                         f"{samples}", f"{SIZE / (1 << 20) / seconds:,.0f}"])
            section.figures[f"{name} {client} MiB"] = growth
            if name == GATEWAY:
                section.judge(f"MiB above the start; {client}", max(0.0, growth), targets.STREAM_GROWTH_MIB)
    section.text = table(["gateway", "client", "before", "peak", "growth", "samples", "MiB/s"], rows)
    return section


def _download(bench, proxy, arguments, size):
    got = run_on(bench.load_cores, [
        "curl", "-sSk", *arguments, "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-d",
        f"@{bench.inputs.body}", "-H", "Content-Type: application/json", "-H", f"X-Api-Key: {bench.inputs.one_key()}",
        f"{proxy.tls}{QUERY}/bytes/{size}"])
    if got != f"200 {size}":
        raise RuntimeError(f"the response of {size} bytes arrived as {got}")


def _watch(pid, work):
    """Runs `work`. Returns the peak memory, the number of samples, and the duration."""
    seen = []
    done = threading.Event()

    def sample():
        while not done.is_set():
            seen.append(memory(pid))
            time.sleep(0.005)

    sampler = threading.Thread(target=sample)
    begun = time.monotonic()
    sampler.start()
    try:
        work()
    finally:
        done.set()
        sampler.join()
    return max(seen), len(seen), time.monotonic() - begun
