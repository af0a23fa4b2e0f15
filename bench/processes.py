"""Starts, pins, measures and stops programs."""

import contextlib
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time


def raise_descriptors():
    """Raises the limit of open files of this process and its children to the hard limit, and returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def pinned(cores):
    """Pins the calling thread, and the programs that it starts in the meantime, to these cores.

    `preexec_fn` is not used because it forks this whole process, which takes longer than the start of a gateway.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Processes:
    """The started programs, which are stopped together."""

    def __init__(self, folder):
        self.folder = folder
        self._running = []

    def start(self, name, command, cores, **streams):
        """Starts a program on these cores. Its output goes to NAME.log, unless `streams` redirects it."""
        with open(self.folder / f"{name}.log", "w") as log, pinned(cores):
            process = subprocess.Popen([str(part) for part in command], start_new_session=True,
                                       **{"stdout": log, "stderr": log, **streams})
        self._running.append(process)
        return process

    def wait_for_port(self, name, process, port):
        """Waits until the port accepts connections."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(0.02)
        output = (self.folder / f"{name}.log").read_text()[-2000:]
        raise SystemExit(f"error: {name} does not listen on port {port}; its output:\n{output}")

    def end(self, process, timeout=5):
        """Stops a program; kills it after `timeout` seconds."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._running.remove(process)

    def end_all(self):
        """Stops all programs, the last one first."""
        for process in reversed(list(self._running)):
            self.end(process)


def family(pid):
    """A process and its descendants: nginx serves requests in child processes."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid):
    """CPU time of a process with its finished threads and its descendants, with nanosecond resolution."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~each << 3) | 2)  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3)
    return total


def system_share(pid):
    """CPU time as (user, system), in ticks of 10 ms."""
    user = system = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
            user, system = user + int(fields[11]), system + int(fields[12])
    return user, system


def memory(pid):
    """Proportional set size in bytes, of a process and its descendants."""
    total = 0
    for each in family(pid):
        for line in pathlib.Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def run_on(cores, command, environment=None):
    """Runs a program on these cores until it exits, and returns its output."""
    with pinned(cores):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True,
                              env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr + done.stdout)[-800:]}")
    return done.stdout
