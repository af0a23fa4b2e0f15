#!/usr/bin/env python3
"""Runs the commands of the guides as written, and compares their output with the output that the guides show.

A guide's `sh` blocks run one after the other in one shell, in an empty folder. A `text` block behind one is its output:
each line must be printed, in this order; `…` stands for any lines, or for the rest of its line. What differs from run to run (ids, tokens,
times, ports) is masked on both sides. A block after `<!-- not run: why -->` is only shown.

With `--show` it prints what the blocks print, for the author of a guide.

Needs the built program (target/debug/timbr-gateway), curl and openssl, and the ports 8080, 8443 and 9180.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

from readme import ROOT, environment, need_free_ports

PATIENCE = 120
BLOCK = re.compile(r"(<!-- not run: .*? -->\n+)?^```(\w+)\n(.*?)^```$", re.M | re.S)
END = "--- end of block ---"
MASKS = [
    (r"tk_[0-9a-f]{56}", "TOKEN"),
    (r"gAAAA[\w=-]+", "BEARER"),
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\b(?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}\b|\b[0-9a-f]{64}\b", "HASH"),
    (r"\b[0-9a-f]{8}\b", "FINGERPRINT"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
    (r"(127\.0\.0\.1|localhost):\d{5}\b", r"\1:PORT"),
    (r"[\w-]{43}=", "SALT"),
    (r"\b\d+(\.\d+)? ?(ms|µs|s)\b", "SPAN"),
    (r"\b\d+ days left", "DAYS left"),
    (r"/tmp/guide-\w+/", ""),
    (r"\x1b\[[0-9;]*m", ""),
    (r"[ \t]+", " "),
]


def masked(line):
    for pattern, word in MASKS:
        line = re.sub(pattern, word, line)
    return line.strip()


def blocks(page):
    """Pairs of a script and what the page shows of its output."""
    pairs = []
    for skipped, language, text in BLOCK.findall(page.read_text()):
        if language == "sh" and not skipped:
            pairs.append((text, []))
        elif language == "text" and not skipped:
            assert pairs, f"{page}: output without a command"
            pairs[-1] = (pairs[-1][0], text.splitlines())
    return pairs


def run(page):
    pairs = blocks(page)
    script = "".join(f"{text}\necho '{END}'\n" for text, _ in pairs)
    with tempfile.TemporaryDirectory(prefix="guide-") as folder, tempfile.TemporaryFile("w+") as output:
        # Not a pipe: what runs on in the background would keep it open.
        shell = subprocess.Popen(["bash", "-e", "-c", script], cwd=folder, env=environment(NO_COLOR="1"), stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = shell.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "no end"
        finally:
            # Its own session, which holds what this guide has started and nothing else.
            try:
                os.killpg(shell.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        output.seek(0)
        printed = output.read()
    assert code == 0, f"{page.name} ends with {code}:\n{printed}"
    outputs = printed.split(f"{END}\n")
    if "--show" in sys.argv:
        for (script, _), output in zip(pairs, outputs):
            print("".join(f"$ {line}\n" for line in script.splitlines()) + output)
        return len(pairs)
    for (script, shown), output in zip(pairs, outputs):
        lines = iter([masked(line) for line in output.splitlines()])
        for line in (line for line in shown if line.strip() not in ("", "…")):
            begin, cut, _ = masked(line).partition("…")
            assert any(printed.startswith(begin) if cut else printed == begin for printed in lines), f"{page.name}: {script}\ndoes not print {line!r} there, but\n{output}"
    return len(pairs)


def main(names):
    need_free_ports()
    pages = [ROOT / name for name in names] or [*sorted((ROOT / "docs" / "guide").glob("*.md")), ROOT / "docs" / "doctor.md"]
    for page in pages:
        print(f"{page.name}: {run(page)} blocks", flush=True)


if __name__ == "__main__":
    try:
        main([name for name in sys.argv[1:] if name != "--show"])
    except AssertionError as error:
        sys.exit(str(error))
