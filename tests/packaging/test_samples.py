"""Each configuration that this repository shows is one that the gateway takes."""

import os
import re
import subprocess

import pytest
import yaml

from conftest import ROOT


@pytest.fixture(scope="module")
def files(tmp_path_factory, salt):
    """What samples name: wherever it is to lie, it lies here."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("api_auth_salt", "api-auth-salt", "salt"):
        (folder / name).write_text(salt)
    (folder / "redis_password").write_text("secret")
    for name in ("store_key", "store-key"):
        (folder / name).write_text("Lz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8/Pz8=")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                    "/CN=localhost", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"], check=True, capture_output=True)
    return folder


def here(text, files):
    for folder in ("/run/secrets", "/etc/timbr-gateway", "%d", "%S/timbr-gateway", "/var/lib/timbr-gateway"):
        text = text.replace(folder, str(files))
    return text


def check(program, files, variables, *arguments):
    variables = {name: here(str(value), files) for name, value in variables.items()}
    done = subprocess.run([program, "config", "check", *arguments], env={"PATH": os.environ["PATH"], **variables},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file(program, files):
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    check(program, files, services["gateway"]["environment"])


def test_the_compose_file_of_all_services(program, files):
    services = yaml.safe_load((ROOT / "deploy/timbr/compose.yaml").read_text())["services"]
    sample = ROOT / "deploy/timbr/gateway.yaml"
    variables = services["gateway"]["environment"]
    assert variables.pop("TIMBR_GATEWAY_CONFIG") == services["gateway"]["volumes"][0].split(":")[1]
    check(program, files, variables, "--config", str(sample))
    # Each upstream is a service of the file, on the port that it listens on.
    config = yaml.safe_load(sample.read_text())
    for url in [config["upstream"]["url"], *(upstream["url"] for upstream in config["upstreams"])]:
        name, port = url.removeprefix("http://").split(":")
        assert port in services[name]["command"][-1], url


def test_the_unit(program, files, tmp_path):
    unit = (ROOT / "deploy/systemd/timbr-gateway.service").read_text()
    variables = dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)$", unit, re.M))
    assert len(variables) == 7
    sample = tmp_path / "gateway.yaml"
    sample.write_text(here((ROOT / "deploy/systemd/gateway.yaml").read_text(), files))
    assert "--config /etc/timbr-gateway/gateway.yaml" in unit
    check(program, files, variables, "--config", str(sample))
    # Stopping may take as long as the gateway gives itself, which is this by default.
    shown = subprocess.run([program, "config", "print"], env={**os.environ, "TIMBR_GATEWAY_UPSTREAM_URL": "http://x:1",
                           "API_AUTH_SALT_FILE": str(files / "salt")}, check=True, capture_output=True, text=True).stdout
    drain = yaml.safe_load(shown)["drain"]
    assert (drain["delay"], drain["timeout"]) == ("0s", "30s") and "TimeoutStopSec=45s" in unit


def test_the_commands_of_the_guide(program, files, tmp_path):
    page = (ROOT / "docs/install.md").read_text()
    samples = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    assert samples
    for number, text in enumerate(samples):
        sample = tmp_path / f"{number}.yaml"
        sample.write_text(here(text, files))
        check(program, files, {"API_AUTH_SALT_FILE": "/run/secrets/salt"}, "--config", str(sample))
