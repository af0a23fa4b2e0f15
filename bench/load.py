"""The load generators, and what they report."""

import dataclasses
import re

from processes import run_on

UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}
SCALE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass
class Load:
    """What came of a slice of load. Latencies in microseconds."""

    done: int
    rate: float
    errors: int
    p50: float = None
    p99: float = None

    def in_units(self, each):
        """Counted in units, of which a request has `each`."""
        return dataclasses.replace(self, done=self.done * each, rate=self.rate * each)


def wrk(bench, url, seconds, connections, credentials=None, field="X-Api-Key", prefix="", body=True, keep_alive=True,
        refused=False, least=200):
    """As many requests as fit. Answers must have `least` bytes on average, and a status that says what is expected."""
    target = "/" + url.split("/", 3)[3]
    said = run_on(bench.load_cores, [
        "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s",
        bench.processes.folder / "wrk.lua", url, "--", target, bench.inputs.body if body else "-", credentials or "-",
        field, prefix, "keep-alive" if keep_alive else "close"])
    count, size, unit = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMGT]?)B read", said).groups()
    done = int(count)
    each = float(size) * SCALE[unit] / max(1, done)
    if each < least:
        raise RuntimeError(f"the answers of {url} have {each:.0f} bytes each; at least {least} are expected")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    bad = int(bad[1]) if bad else 0
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    broken = sum(map(int, broken.groups())) if broken else 0
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    latency = lambda share: _microseconds(re.search(share + r"%\s+([\d.]+\w+)", said)[1])
    return Load(done, rate, broken + (done - bad if refused else bad), latency("50"), latency("99"))


def h2load(bench, url, *arguments, body=None, log=False, least=200):
    """What the arguments say, over HTTP/2 or, with `--h1`, HTTP/1.1. `log`: with latencies."""
    path = bench.processes.folder / "h2load.log"
    path.unlink(missing_ok=True)
    said = run_on(bench.load_cores, [
        "h2load", "-t1", "-d", body or bench.inputs.body, "-H", "content-type: application/json", "-H",
        f"x-api-key: {bench.inputs.one_key()}", *(["--log-file", path] if log else []), *arguments, url])
    done = int(re.search(r"requests: \d+ total, \d+ started, (\d+) done", said)[1])
    succeeded = int(re.search(r"status codes: (\d+) 2xx", said)[1])
    size = int(re.search(r"\((\d+)\) data", said)[1])
    if size / max(1, done) < least:
        raise RuntimeError(f"the answers of {url} have {size / max(1, done):.0f} bytes each; {least} are expected")
    load = Load(done, float(re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", said)[1]), done - succeeded)
    if log:
        took = sorted(int(line.split("\t")[2]) for line in path.read_text().splitlines())
        load.p50, load.p99 = (took[int(len(took) * share)] for share in (0.5, 0.99))
    return load


def _microseconds(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * UNITS[unit]
