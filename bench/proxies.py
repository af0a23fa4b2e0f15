"""The measured programs, and their configuration for the same workload."""

import contextlib
import dataclasses
import pathlib
import re
import subprocess
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent

NGINX_BUFFERS = "proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 256k; client_body_buffer_size 64k;"
GATEWAY, OLD, NGINX, HAPROXY = "gateway", "old", "nginx", "haproxy"
NGINX_TUNED, HAPROXY_TUNED = "nginx-tuned", "haproxy-tuned"
PEERS = [NGINX, HAPROXY, NGINX_TUNED, HAPROXY_TUNED]


@dataclasses.dataclass
class Proxy:
    """A running proxy."""

    name: str
    pid: int
    process: subprocess.Popen
    plain_port: int
    tls_port: int
    admin_port: int
    log_reader: subprocess.Popen = None

    @property
    def plain(self):
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def tls(self):
        return f"https://127.0.0.1:{self.tls_port}"

    def metric(self, name):
        """The value of a counter of the gateway."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=5) as response:
            found = re.search(rf"^timbr_gateway_{name} (\d+)", response.read().decode(), re.M)
        return int(found[1])


class Bench:
    """One upstream and the proxies in front of it."""

    def __init__(self, processes, inputs, options):
        self.processes, self.inputs, self.options = processes, inputs, options
        self.proxy_cores, self.load_cores = options.proxy_cores, options.load_cores
        self._next_port = options.port
        self.running = {}
        processes.folder.joinpath("wrk.lua").write_text((HERE / "wrk.lua").read_text())
        program = processes.folder / "upstream"
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "upstream.c"], check=True)
        self.upstream_port = self._port()
        process = processes.start("upstream", [program, self.upstream_port], self.load_cores)
        processes.wait_for_port("upstream", process, self.upstream_port)

    def start_all(self, names):
        """Starts the proxies that are compared."""
        for name in names:
            self.running[name] = self.start(name, name)

    def start(self, kind, name, **settings):
        """Starts a proxy of this kind under this name."""
        if kind in PEERS:
            return self.start_peer(kind, name)
        return self.start_gateway(kind, name, **settings)

    def start_gateway(self, kind, name, cores=None, wait=True, under=(), delay=0, **settings):
        """Starts a gateway with the configuration of gateway.yaml; its log is read from a pipe.

        `under` is the command of a program that runs it, such as valgrind. It starts `delay` seconds after its configuration
        was written.
        """
        binary = self.options.compare if kind == OLD else self.options.binary
        values = self._values(name, settings)
        config = self._config(name, "gateway.yaml", values)
        time.sleep(delay)
        process = self.processes.start(name, [*under, binary, "serve", "--config", config], cores or self.proxy_cores,
                                       stderr=subprocess.PIPE)
        reader = self.processes.start(f"{name}-log", ["wc", "-l"], self.load_cores, stdin=process.stderr)
        process.stderr.close()
        return self._started(name, process, values, reader, wait)

    def start_peer(self, kind, name):
        """Starts nginx or HAProxy."""
        tuned = kind in (NGINX_TUNED, HAPROXY_TUNED)
        if kind in (NGINX, NGINX_TUNED):
            values = self._values(name, {"buffers": NGINX_BUFFERS if tuned else ""})
            config = self._config(name, "peers/nginx.conf", values)
            command = ["nginx", "-p", self.processes.folder, "-c", config]
        else:
            tuning = {"buffers": "tune.bufsize 65536" if tuned else "", "splice": "option splice-auto" if tuned else ""}
            most = 4000 if tuned else self.options.descriptors // 2 - 500
            values = self._values(name, {**tuning, "connections": most})
            config = self._config(name, "peers/haproxy.cfg", values)
            command = ["haproxy", "-db", "-f", config]
        return self._started(name, self.processes.start(name, command, self.proxy_cores), values)

    def stop(self, proxy, timeout=5):
        """Stops a proxy. Returns the number of log lines of a gateway."""
        self.processes.end(proxy.process, timeout)
        if not proxy.log_reader:
            return None
        proxy.log_reader.wait(30)
        return int((self.processes.folder / f"{proxy.name}-log.log").read_text())

    def _started(self, name, process, values, reader=None, wait=True):
        proxy = Proxy(name, process.pid, process, values["plain_port"], values["tls_port"], values["admin_port"], reader)
        if wait:
            for port in (proxy.plain_port, proxy.tls_port):
                self.processes.wait_for_port(name if not reader else f"{name}-log", process, port)
        return proxy

    def _values(self, name, settings):
        inputs = self.inputs
        return {
            "name": name, "run": self.processes.folder, "workers": self.options.threads,
            "descriptors": self.options.descriptors, "connections": self.options.descriptors,
            "upstream": f"127.0.0.1:{self.upstream_port}",
            "plain_port": self._port(), "tls_port": self._port(), "admin_port": self._port(),
            "certificate": inputs.certificate, "key": inputs.key, "certificate_and_key": inputs.certificate_and_key,
            "keys": inputs.keys, "hashes": inputs.hashes, "nginx_keys": inputs.nginx_keys, "salt": inputs.salt,
            **settings,
        }

    def _config(self, name, template, values):
        text = (HERE / template).read_text()
        for key, value in values.items():
            text = text.replace("{" + key + "}", str(value))
        path = self.processes.folder / f"{name}.conf"
        path.write_text(text)
        return path

    def _port(self):
        self._next_port += 1
        return self._next_port


def versions(binary):
    """Versions of the measured programs, the load generators and the machine, as (name, version)."""
    def first_line(*command):
        with contextlib.suppress(OSError):
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            return (done.stdout + done.stderr).strip().splitlines()[0]
        return "missing"

    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return [
        ("gateway", first_line(binary, "--version")),
        ("nginx", first_line("nginx", "-v").removeprefix("nginx version: ")),
        ("HAProxy", first_line("haproxy", "-v").split(" - ")[0]),
        ("OpenSSL of both", first_line("openssl", "version").split(" (")[0]),
        ("load", f"{first_line('wrk', '-v').split(' [')[0]}, {first_line('h2load', '--version')}"),
        ("kernel", first_line("uname", "-sr")),
        ("CPU", cpu[1] if cpu else "unknown"),
    ]
