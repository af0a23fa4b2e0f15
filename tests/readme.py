#!/usr/bin/env python3
"""Runs the commands of the README as written, and compares their output with the output that it shows.

Needs the built program (target/debug/timbr-gateway), the Python environment of tests/e2e, and the ports that the page
names: 8080, 8443 and 9180.
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "target" / "debug"
PYTHON = pathlib.Path(os.environ.get("TIMBR_E2E_VENV", ROOT / "target" / "e2e-venv")) / "bin" / "python"
PATIENCE = 60


def blocks():
    """The README's code blocks: (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def need_free_ports():
    """Ends if another program has one of the ports that stand in the texts."""
    for port in (8080, 8443, 9180):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                sys.exit(f"error: port {port} is in use ({error.strerror}); the commands of the documentation need it")


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TIMBR_GATEWAY_", "API_AUTH_"))}
    return {**clean, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", **more}


def masked(line):
    """The line without what differs from run to run."""
    line = re.sub(r"tk_[0-9a-f]{56}", "tk_TOKEN", line)
    line = re.sub(r'"request_id":"[0-9a-f]{32}"', '"request_id":"ID"', line)
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:PORT", line)


def check_demo(command, shown):
    """The README's first command, and its output, of which the README may leave lines out."""
    assert command.strip() == "cargo run -- demo --once", command
    printed = subprocess.run(["bash", "-ec", command], cwd=ROOT, env=environment(), check=True, capture_output=True,
                             text=True, timeout=PATIENCE * 20).stdout
    printed = [masked(line) for line in printed.splitlines()]
    for line in shown.splitlines():
        assert masked(line) in printed, f"the demo does not print {line!r}, but\n" + "\n".join(printed)


def check_serve(script):
    """A block that ends by serving: it must become ready, and end well when asked to."""
    assert script.count("API_AUTH_SALT='...'") == 1, "the block has a place for the reader's salt"
    script = script.replace("'...'", '"$(timbr-gateway salt)"')
    process = subprocess.Popen(["bash", "-ec", script.replace("timbr-gateway serve", "exec timbr-gateway serve")],
                               env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                with urllib.request.urlopen("http://127.0.0.1:9180/readyz", timeout=1) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert time.monotonic() < deadline, "the gateway does not become ready"
                time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0, process.stderr.read()


def check_python(script):
    """A client's script, against the demo."""
    demo = subprocess.Popen([PROGRAMS / "timbr-gateway", "demo", "--listen-https", "127.0.0.1:0"], env=environment(),
                            stdout=subprocess.PIPE, text=True)
    try:
        told = {}
        for line in demo.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                told[name] = value
            elif match := re.match(r"A gateway on (\S+),", line):
                told["GATEWAY_URL"] = match[1]
            elif line.startswith("The gateway keeps running"):
                break
        told["REQUESTS_CA_BUNDLE"] = told["CURL_CA_BUNDLE"]
        printed = subprocess.run([PYTHON, "-c", script], env=environment(**told), check=True, capture_output=True,
                                 text=True, timeout=PATIENCE).stdout
        assert printed == "[{'name': 'Ada Lovelace'}, {'name': 'Grace Hopper'}]\n", printed
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, demo.returncode


def main():
    need_free_ports()
    found = blocks()
    kinds = [language for language, _ in found]
    assert kinds == ["sh", "text", "sh", "python", "sh"], f"this script does not know the README's blocks: {kinds}"
    (_, demo), (_, shown), (_, serve), (_, client), (_, test) = found
    check_demo(demo, shown)
    check_serve(serve)
    check_python(client)
    # The test command is what runs this; CI must call it as it stands.
    assert test.strip() in (ROOT / ".ci" / "run").read_text().splitlines(), f".ci/run does not call {test!r}"
    print(f"{len(found)} passed, 0 failed")


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    assert shutil.which("cargo"), "cargo is missing"
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as error:
        sys.exit(f"README: {error}\n{getattr(error, 'stderr', '') or ''}")
