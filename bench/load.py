"""The load generators and their results."""

import concurrent.futures
import dataclasses
import pathlib
import re
import sys

from processes import run_on

# For all clients and proxies: OpenSSL's clients would prefer AES-256, and the proxies choose differently.
CIPHER = "TLS_AES_128_GCM_SHA256"

UNITS = {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}
SCALE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass
class Load:
    """The result of one slice of load. Latencies in microseconds."""

    done: int
    rate: float
    errors: int
    p50: float = None
    p99: float = None

    def in_units(self, each):
        """The result counted in units, of which a request has `each`."""
        return dataclasses.replace(self, done=self.done * each, rate=self.rate * each)


def wrk(bench, url, seconds, connections, credentials=None, header="X-Api-Key", prefix="", body=True, keep_alive=True,
        rejected=False, least=200):
    """As many requests as possible. Responses must have `least` bytes on average and the expected kind of status."""
    target = "/" + url.split("/", 3)[3]
    output = run_on(bench.load_cores, [
        "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s",
        bench.processes.folder / "wrk.lua", url, "--", target, bench.inputs.body if body else "-", credentials or "-",
        header, prefix, "keep-alive" if keep_alive else "close"], {"OPENSSL_CONF": _one_cipher(bench)})
    count, size, unit = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMGT]?)B read", output).groups()
    done = int(count)
    each = float(size) * SCALE[unit] / max(1, done)
    if each < least:
        raise RuntimeError(f"the responses of {url} have {each:.0f} bytes on average; at least {least} are expected")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    bad = int(bad[1]) if bad else 0
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    broken = sum(map(int, broken.groups())) if broken else 0
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    latency = lambda share: _microseconds(re.search(share + r"%\s+([\d.]+\w+)", output)[1])
    return Load(done, rate, broken + (done - bad if rejected else bad), latency("50"), latency("99"))


def h2load(bench, url, *arguments, body=None, log=False, least=200):
    """The load given by the arguments, over HTTP/2 or, with `--h1`, HTTP/1.1. `log`: record latencies."""
    path = bench.processes.folder / "h2load.log"
    path.unlink(missing_ok=True)
    output = run_on(bench.load_cores, [
        "h2load", "-t1", f"--tls13-ciphers={CIPHER}", "-d", body or bench.inputs.body, "-H", "content-type: application/json", "-H",
        f"x-api-key: {bench.inputs.one_key()}", *(["--log-file", path] if log else []), *arguments, *([url] if url else [])])
    done = int(re.search(r"requests: \d+ total, \d+ started, (\d+) done", output)[1])
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output).groups()
    succeeded, *others = map(int, statuses)
    # With a time limit, the last responses have a status but no end.
    errors = sum(others) or max(0, done - succeeded)
    size = int(re.search(r"\((\d+)\) data", output)[1])
    if size / max(1, done) < least:
        raise RuntimeError(f"the responses of {url} have {size / max(1, done):.0f} bytes on average; at least {least} are expected")
    load = Load(done, float(re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", output)[1]), errors)
    if log:
        took = sorted(int(line.split("\t")[2]) for line in path.read_text().splitlines())
        load.p50, load.p99 = (took[int(len(took) * share)] for share in (0.5, 0.99))
    return load


def resume(bench, proxy, seconds):
    """A new TLS connection for each request, with a ticket of the one before."""
    client = pathlib.Path(__file__).with_name("resume.py")
    output = run_on(bench.load_cores, [
        sys.executable, client, proxy.tls_port, max(1, round(seconds)), bench.inputs.one_key(), bench.inputs.body],
        {"OPENSSL_CONF": _one_cipher(bench)})
    done, resumed, errors = map(int, output.split())
    # The first handshake has no ticket.
    if resumed < done - 1:
        raise RuntimeError(f"{proxy.name} resumed {resumed} of {done} handshakes")
    return Load(done, done / seconds, errors)


def mix(bench, proxy, seconds, targets):
    """Two clients at the same time, one over HTTP/1.1 and one over HTTP/2, which use the targets in turn."""
    path = bench.processes.folder / "targets"
    path.write_text("".join(f"{proxy.tls}{target}\n" for target in targets))
    until = ["-D", max(1, round(seconds)), "-i", path]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [pool.submit(h2load, bench, None, *arguments, *until) for arguments in (["--h1", "-c8"], ["-c2", "-m4"])]
    one, other = (each.result() for each in both)
    return Load(one.done + other.done, one.rate + other.rate, one.errors + other.errors)


def _one_cipher(bench):
    """The configuration of OpenSSL that leaves its clients one cipher."""
    path = bench.processes.folder / "openssl.cnf"
    path.write_text("openssl_conf = default\n[default]\nssl_conf = modules\n[modules]\nsystem_default = tls\n[tls]\n"
                    f"Ciphersuites = {CIPHER}\n")
    return str(path)


def _microseconds(text):
    number, unit = re.match(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * UNITS[unit]
