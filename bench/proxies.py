"""The measured programs, and their configuration for the same workload."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent

NGINX_BUFFERS = "proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 256k; client_body_buffer_size 64k;"
GATEWAY, OLD, NGINX, HAPROXY, ENVOY, PINGORA = "gateway", "old", "nginx", "haproxy", "envoy", "pingora"
NGINX_TUNED, HAPROXY_TUNED = "nginx-tuned", "haproxy-tuned"
PEERS = [NGINX, HAPROXY, ENVOY, PINGORA, NGINX_TUNED, HAPROXY_TUNED]
PROGRAMS = [NGINX, HAPROXY, ENVOY, PINGORA]
NEWEST_ONLY = [ENVOY, PINGORA]  # Debian does not have them

# Where bench/newest puts them.
NEWEST = HERE.parent / "target" / "bench-newest" / "bin"


def program_of(name, newest):
    """The newest program of a peer, or that of the system; `None` if it is missing."""
    return shutil.which(name, path=str(NEWEST) if newest else None)


@dataclasses.dataclass
class Proxy:
    """A running proxy."""

    name: str
    pid: int
    process: subprocess.Popen
    plain_port: int
    tls_port: int
    admin_port: int
    log_reader: subprocess.Popen

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
        if kind == OLD and self.options.compare_options:
            config.write_text(config.read_text() + self.options.compare_options.read_text())
        time.sleep(delay)
        return self._run(name, [*under, binary, "serve", "--config", config], values, cores, wait)

    def start_peer(self, kind, name):
        """Starts a peer. All write their access log to a pipe that is read, as the gateway does."""
        tuned = kind in (NGINX_TUNED, HAPROXY_TUNED)
        if kind in (NGINX, NGINX_TUNED):
            values = self._values(name, {"buffers": NGINX_BUFFERS if tuned else ""})
            config = self._config(name, "peers/nginx.conf", values)
            command = [self.program(NGINX), "-p", self.processes.folder, "-c", config, "-e", f"{config}.err"]
        elif kind == ENVOY:
            values = self._values(name, {"users": self.inputs.envoy_users.read_text()})
            values["manager"] = self._filled("peers/envoy-manager.json", values)
            config = self._config(name, "peers/envoy.json", values)
            command = [self.program(ENVOY), "-c", config, "--concurrency", values["workers"],
                       "--disable-hot-restart", "--log-level", "error"]
        elif kind == PINGORA:
            values = self._values(name, {})
            addresses = (f"127.0.0.1:{values[port]}" for port in ("plain_port", "tls_port", "upstream_port"))
            files = (values[file] for file in ("certificate", "key", "keys"))
            command = [self.program(PINGORA), *addresses, *files, values["workers"]]
        else:
            tuning = {"buffers": "tune.bufsize 65536" if tuned else "", "splice": "option splice-auto" if tuned else ""}
            most = 4000 if tuned else self.options.descriptors // 2 - 500
            values = self._values(name, {**tuning, "connections": most})
            config = self._config(name, "peers/haproxy.cfg", values)
            command = [self.program(HAPROXY), "-db", "-f", config]
        return self._run(name, command, values)

    def program(self, name):
        """The path of a peer's program."""
        return program_of(name, self.options.newest)

    def _run(self, name, command, values, cores=None, wait=True):
        """Starts a proxy, and a program that reads and counts the lines of its log."""
        process = self.processes.start(name, command, cores or self.proxy_cores, stderr=subprocess.PIPE)
        reader = self.processes.start(f"{name}-log", ["wc", "-l", "-c"], self.load_cores, stdin=process.stderr)
        process.stderr.close()
        return self._started(name, process, values, reader, wait)

    def stop(self, proxy, timeout=5):
        """Stops a proxy. Returns the number of its log lines, and their bytes."""
        self.processes.end(proxy.process, timeout)
        proxy.log_reader.wait(30)
        lines, size = (self.processes.folder / f"{proxy.name}-log.log").read_text().split()
        return int(lines), int(size)

    def _started(self, name, process, values, reader, wait):
        proxy = Proxy(name, process.pid, process, values["plain_port"], values["tls_port"], values["admin_port"], reader)
        if wait:
            for port in (proxy.plain_port, proxy.tls_port):
                self.processes.wait_for_port(f"{name}-log", process, port)
        return proxy

    def _values(self, name, settings):
        inputs = self.inputs
        return {
            "name": name, "run": self.processes.folder, "workers": self.options.threads,
            "descriptors": self.options.descriptors, "connections": self.options.descriptors,
            "upstream": f"127.0.0.1:{self.upstream_port}",
            "plain_port": self._port(), "tls_port": self._port(), "admin_port": self._port(),
            "certificate": inputs.certificate, "key": inputs.key, "certificate_and_key": inputs.certificate_and_key,
            "keys": inputs.keys, "hashes": inputs.hashes, "salt": inputs.salt, "nginx_users": inputs.nginx_users,
            "haproxy_users": inputs.haproxy_users, "upstream_port": self.upstream_port,
            **settings,
        }

    def _config(self, name, template, values):
        path = self.processes.folder / (name + (".json" if template.endswith(".json") else ".conf"))
        path.write_text(self._filled(template, values))
        return path

    def _filled(self, template, values):
        text = (HERE / template).read_text()
        for key, value in values.items():
            text = text.replace("{" + key + "}", str(value))
        return text

    def _port(self):
        self._next_port += 1
        return self._next_port


def versions(binary, newest):
    """Versions of the measured programs, the load generators and the machine, as (name, version)."""
    def first_line(*command):
        with contextlib.suppress(OSError):
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            return (done.stdout + done.stderr).strip().splitlines()[0]
        return "missing"

    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return [
        ("gateway", first_line(binary, "--version")),
        ("nginx", first_line(program_of(NGINX, newest), "-v").removeprefix("nginx version: ")),
        ("HAProxy", first_line(program_of(HAPROXY, newest), "-v").split(" - ")[0]),
        ("Envoy", first_line(program_of(ENVOY, newest), "--version").split("version: ")[-1]),
        ("Pingora", first_line(program_of(PINGORA, newest), "--version")),
        ("OpenSSL of the load generators", first_line("openssl", "version").split(" (")[0]),
        ("load", f"{first_line('wrk', '-v').split(' [')[0]}, {first_line('h2load', '--version')}"),
        ("kernel", first_line("uname", "-sr")),
        ("CPU", cpu[1] if cpu else "unknown"),
    ]
