"""The Debian and the RPM package: installed, upgraded and removed in a fresh system."""

import os
import subprocess

import pytest

from conftest import ROOT, podman, wait_until

SERVICE = "timbr-gateway.service"
SECRETS = "/etc/timbr-gateway"


@pytest.fixture(scope="module")
def packages(program, tmp_path_factory):
    """A folder with both packages, weakly compressed."""
    folder = tmp_path_factory.mktemp("packages")
    binary, licences = folder / "timbr-gateway", folder / "licences"
    subprocess.run(["objcopy", "--strip-debug", program, binary], check=True)
    # test_release.py makes the real one.
    licences.write_text("the licences of all crates\n")
    archive = subprocess.run([ROOT / "deploy/release/archive", binary, licences, folder], check=True, capture_output=True,
                             text=True).stdout.strip()
    out = folder / "out"
    done = subprocess.run([ROOT / "deploy/release/packages", archive, out], env={**os.environ, "FAST": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
                    "-keyout", out / "tls.key", "-out", out / "tls.crt"], check=True, capture_output=True)
    return out


def test_the_debian_package_is_installed_upgraded_and_removed(run, packages):
    [package] = packages.glob("*.deb")
    container = run("--systemd=always", "--privileged", "--network=none", "--volume", f"{packages}:/packages:ro",
                    "localhost/systemd:latest")

    def sh(script, check=True):
        return container.exec("sh", "-ec", script, check=check).stdout.strip()

    def status():
        return sh("curl --silent --cacert /packages/tls.crt --max-time 20 --output /dev/null --write-out '%{http_code}' "
                  "--header 'Content-Type: application/json' https://localhost/timbr/api/get_ontologies/")

    wait_until("systemd runs", lambda: sh("systemctl is-system-running || true") == "running")
    sh("mount --make-rshared /")
    sh(f"dpkg --install /packages/{package.name}")
    assert sh(f"systemctl is-enabled {SERVICE} || true; systemctl is-active {SERVICE} || true") == "disabled\ninactive"
    # As docs/install.md says.
    sh(f"timbr-gateway salt | install -m 600 /dev/stdin {SECRETS}/api-auth-salt")
    sh(f"timbr-gateway store key | install -m 600 /dev/stdin {SECRETS}/store-key")
    sh(f"install -m 600 /packages/tls.crt /packages/tls.key {SECRETS}/")
    sh(f"echo 'workers: 1' >> {SECRETS}/gateway.yaml")
    sh(f"systemctl enable --now timbr-gateway.socket {SERVICE}")
    assert status() == "401"

    before = sh(f"systemctl show --value --property=MainPID {SERVICE}")
    sh(f"dpkg --force-confold --install /packages/{package.name}")
    assert sh(f"systemctl show --value --property=MainPID {SERVICE}") != before, "the new program runs"
    assert status() == "401" and "workers: 1" in sh(f"cat {SECRETS}/gateway.yaml")

    sh("dpkg --remove timbr-gateway")
    assert sh("ls /usr/bin/timbr-gateway /usr/lib/systemd/system/timbr-gateway.* || true") == ""
    assert sh(f"systemctl is-active {SERVICE} || true") == "inactive"
    assert sh(f"ls {SECRETS}").split() == ["api-auth-salt", "gateway.yaml", "store-key", "tls.crt", "tls.key"]


def test_the_rpm_package_has_the_same_files_and_can_be_installed(packages, tmp_path):
    [rpm], [deb] = packages.glob("*.rpm"), packages.glob("*.deb")
    root = tmp_path / "root"
    subprocess.run(["rpm", "--root", root, "--install", "--nodeps", "--noscripts", rpm], check=True, capture_output=True)
    version = subprocess.run([root / "usr/bin/timbr-gateway", "--version"], check=True, capture_output=True, text=True)
    assert version.stdout.startswith("timbr-gateway ")
    listed = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    names = subprocess.run(["tar", "t"], input=listed, check=True, capture_output=True).stdout.decode().split()
    # Debian compresses manual pages, and has a file of its own for the copyright.
    files = {name.removeprefix("./").removesuffix(".gz") for name in names if not name.endswith("/")}
    installed = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "rpmdb" not in str(path)}
    assert installed == files - {"usr/share/doc/timbr-gateway/copyright"}
