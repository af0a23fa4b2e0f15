"""Programs that are started, pinned, measured and ended."""

import contextlib
import os
import pathlib
import resource
import signal
import socket
import subprocess
import time


def raise_descriptors():
    """Lets this process and its children open as many files as they may, and says how many that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def pinned(cores):
    """Has the calling thread, and whatever it starts meanwhile, run on these cores.

    Not by `preexec_fn`, with which this whole process would have to be forked: that takes longer than a gateway's start.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Processes:
    """What was started, to be ended together."""

    def __init__(self, folder):
        self.folder = folder
        self._running = []

    def start(self, name, command, cores, **streams):
        """Starts a program on these cores; what it prints goes to a file of its name, unless `streams` say otherwise."""
        with open(self.folder / f"{name}.log", "w") as log, pinned(cores):
            process = subprocess.Popen([str(part) for part in command], start_new_session=True,
                                       **{"stdout": log, "stderr": log, **streams})
        self._running.append(process)
        return process

    def wait_for_port(self, name, process, port):
        """Returns once somebody listens there."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            time.sleep(0.02)
        said = (self.folder / f"{name}.log").read_text()[-2000:]
        raise SystemExit(f"error: {name} does not listen on port {port}; it said:\n{said}")

    def end(self, process, patience=5):
        """Ends a program, by force after so many seconds."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._running.remove(process)

    def end_all(self):
        """Ends everything, the last first."""
        for process in reversed(list(self._running)):
            self.end(process)


def family(pid):
    """A process and its descendants: nginx works in children."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid):
    """CPU time of a process, its ended threads and its descendants, by the clock that counts nanoseconds."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~each << 3) | 2)  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3)
    return total


def system_share(pid):
    """Ticks of 10 ms: (user, system)."""
    user = system = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
            user, system = user + int(fields[11]), system + int(fields[12])
    return user, system


def memory(pid):
    """Resident bytes: what is a process's own, and its part of what it shares with its descendants."""
    total = 0
    for each in family(pid):
        for line in pathlib.Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def run_on(cores, command):
    """Runs a program to its end on these cores, and gives what it printed."""
    with pinned(cores):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr + done.stdout)[-800:]}")
    return done.stdout
