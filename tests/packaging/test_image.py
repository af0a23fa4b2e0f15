"""The image: what it is made of, and how it runs as careful operators run it."""

import json
import subprocess
import time
import zlib

import pytest
import requests

from conftest import CLOSED, IMAGE, PATIENCE, ROOT, podman, wait_until

UPSTREAM = ("--env", "TIMBR_GATEWAY_UPSTREAM_URL=http://127.0.0.1:1")


def test_the_dockerfile_is_as_its_linter_wants_it():
    done = subprocess.run(["hadolint", "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_says_what_it_is_and_has_no_settings_of_its_own():
    (image,) = json.loads(podman("image", "inspect", IMAGE).stdout)
    config, labels = image["Config"], image["Config"]["Labels"]
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["/usr/local/bin/timbr-gateway"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["ExposedPorts"]) == {"8443/tcp", "8080/tcp", "9180/tcp"}
    assert image["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/timbr-gateway", "healthcheck"]
    assert not [name for name in config.get("Env") or [] if name.startswith(("TIMBR_", "API_"))]
    wanted = ("title", "description", "licenses", "version", "revision", "created", "source")
    assert all(labels[f"org.opencontainers.image.{name}"] for name in wanted)
    first, *more = podman("run", "--rm", IMAGE, "--version").stdout.splitlines()
    assert first == f"timbr-gateway {labels['org.opencontainers.image.version']}"
    assert f"commit: {labels['org.opencontainers.image.revision']}" in more


def test_there_is_no_shell():
    for shell in ("sh", "bash", "busybox"):
        assert podman("run", "--rm", "--entrypoint", shell, IMAGE, check=False).returncode == 127


def test_the_binary_tells_what_it_is_made_of(program, tmp_path):
    """As `cargo auditable` writes it, and scanners of images read it."""
    section = tmp_path / "dep-v0"
    subprocess.run(["objcopy", "--output-target=binary", "--only-section=.dep-v0", "--set-section-flags=.dep-v0=alloc",
                    program, section], check=True)
    packages = {package["name"]: package for package in json.loads(zlib.decompress(section.read_bytes()))["packages"]}
    assert packages["timbr-gateway"]["root"] is True
    assert {"rustls", "aws-lc-rs", "hyper", "tokio"} <= set(packages)
    locked = (ROOT / "Cargo.lock").read_text()
    assert f'name = "rustls"\nversion = "{packages["rustls"]["version"]}"' in locked


def test_the_licences_of_what_it_is_made_of_come_along(tmp_path):
    made = podman("create", IMAGE).stdout.strip()
    podman("cp", f"{made}:/usr/share/doc/timbr-gateway", tmp_path)
    podman("rm", made)
    (folder,) = tmp_path.iterdir()
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    others = (folder / "THIRD_PARTY_LICENSES").read_text()
    for part in ("\nrustls ", "\naws-lc-sys ", "\ntikv-jemalloc-sys ", "Apache License", "Permission is hereby granted"):
        assert part in others, part


@pytest.fixture(scope="module")
def gateway(run, salt):
    """With the two settings that are needed, and no other."""
    gateway = run(*CLOSED, "--publish", "127.0.0.1::8443", "--env", f"API_AUTH_SALT={salt}", *UPSTREAM, IMAGE)
    wait_until("it is healthy", gateway.healthy)
    return gateway


def test_two_settings_are_enough_and_https_is_published(gateway):
    url = f"https://{gateway.port(8443)}/timbr/api/get_ontologies/"
    answer = requests.get(url, headers={"Content-Type": "application/json"}, verify=False, timeout=PATIENCE)
    assert (answer.status_code, answer.json()["reason"]) == (401, "api_key_missing")


def test_its_process_has_nothing_that_it_does_not_need(gateway):
    status = dict(line.split(":", 1) for line in open(f"/proc/{gateway.inspect('{{.State.Pid}}')}/status"))
    assert status["Uid"].split() == ["65532"] * 4
    assert (status["CapEff"].strip(), status["CapBnd"].strip()) == ("0" * 16, "0" * 16)
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


def test_operators_ask_it_from_within_and_nobody_from_without(gateway):
    assert json.loads(gateway.exec("timbr-gateway", "tokens", "list", "--json").stdout) == []
    assert "127.0.0.1:9180" in gateway.log


def test_it_cannot_write_where_it_is_told_not_to(salt):
    done = podman("run", "--rm", *CLOSED, "--env", f"API_AUTH_SALT={salt}", *UPSTREAM, "--env", "TIMBR_GATEWAY_STORE_KIND=file",
                  "--env", "TIMBR_GATEWAY_STORE_PATH=/home/nonroot/tokens", IMAGE, check=False)
    assert done.returncode == 1
    assert "/home/nonroot/tokens" in done.stderr and "Read-only file system" in done.stderr


def test_it_keeps_tokens_in_a_volume(run, salt):
    gateway = run(*CLOSED, "--volume", "/home/nonroot", "--env", f"API_AUTH_SALT={salt}", *UPSTREAM,
                  "--env", "TIMBR_GATEWAY_STORE_KIND=file", "--env", "TIMBR_GATEWAY_STORE_PATH=/home/nonroot/tokens", IMAGE)
    wait_until("it is healthy", gateway.healthy)


def test_process_1_ends_when_asked_to(run, salt):
    gateway = run(*CLOSED, "--env", f"API_AUTH_SALT={salt}", *UPSTREAM, IMAGE)
    wait_until("it is healthy", gateway.healthy)
    begun = time.monotonic()
    podman("stop", "--time", "20", gateway.id)
    took = time.monotonic() - begun
    print(f"stopped in {took:.2f} s")
    assert gateway.inspect("{{.State.ExitCode}}") == "0"
    assert took < 5


def test_a_wrong_configuration_ends_it_with_a_sentence():
    done = podman("run", "--rm", IMAGE, check=False)
    assert done.returncode == 1
    assert "API_AUTH_SALT" in done.stderr and "TIMBR_GATEWAY_UPSTREAM_URL" in done.stderr


def test_the_demo_runs_in_it():
    shown = podman("run", "--rm", *CLOSED, "--tmpfs", "/tmp", IMAGE, "demo", "--once").stdout
    assert "api_key_missing" in shown and "Ada Lovelace" in shown and "query as alice" in shown


def test_it_starts_quickly_and_is_small(salt):
    begun = time.monotonic()
    for _ in range(5):
        podman("run", "--rm", *CLOSED, "--env", f"API_AUTH_SALT={salt}", *UPSTREAM, IMAGE, "config", "check")
    took = (time.monotonic() - begun) / 5
    size = int(podman("image", "inspect", IMAGE, "--format", "{{.Size}}").stdout) / 1e6
    print(f"{took:.2f} s a run, {size:.0f} MB")
    # Without optimization it is several times as large as what is released.
    assert took < 5 and size < 250
