"""A release from its installation to its end, by both versions of helm, against a stand-in for the API; and the package."""

import json
import os

import pytest
import yaml

from support.chart import CHART, HELMS, KUBECTL, rendered_text, run, values_of
from support.standin_api import Api


@pytest.fixture
def api(tmp_path, monkeypatch):
    with Api() as api:
        kubeconfig = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": api.url}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "default"}}],
            "users": [{"name": "it", "user": {"token": "any"}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig))
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield api


def deployment(api: Api) -> dict:
    return api.kept("Deployment")["Deployment", "gw-timbr-gateway"]["spec"]


@pytest.mark.parametrize("version", HELMS)
def test_a_release_is_installed_upgraded_rolled_back_and_removed(version, api, counts):
    def helm(*words):
        counts[f"verbs of {version}"] += 1
        return run(HELMS[version], *words).stdout

    # The stand-in describes no types.
    blind = "--disable-openapi-validation"
    told = helm("install", "gw", CHART, "--values", values_of("redis"), blind)
    assert "curl -k https://localhost:8443/timbr/api/get_ontologies/" in told
    assert {kind for kind, _ in api.kept()} == {
        "ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget",
    }
    assert deployment(api)["replicas"] == 3
    before = deployment(api)["template"]["metadata"]["annotations"]["checksum/config"]

    helm("upgrade", "gw", CHART, "--values", values_of("redis"), "--set", "replicaCount=2,config.log.level=debug",
         "--set", "metrics.serviceMonitor.enabled=true", blind)
    assert deployment(api)["replicas"] == 2
    assert deployment(api)["template"]["metadata"]["annotations"]["checksum/config"] != before
    assert "level: debug" in api.kept()["ConfigMap", "gw-timbr-gateway"]["data"]["gateway.yaml"]
    assert ("ServiceMonitor", "gw-timbr-gateway") in api.kept() and ("Service", "gw-timbr-gateway-admin") in api.kept()

    helm("rollback", "gw", "1")
    assert deployment(api)["replicas"] == 3
    assert deployment(api)["template"]["metadata"]["annotations"]["checksum/config"] == before
    assert "level: debug" not in api.kept()["ConfigMap", "gw-timbr-gateway"]["data"]["gateway.yaml"]
    assert not api.kept("ServiceMonitor") and ("Service", "gw-timbr-gateway-admin") not in api.kept()
    history = json.loads(helm("history", "gw", "--output", "json"))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]

    # A second test replaces the pod of the first one.
    for _ in range(2):
        told = helm("test", "gw", "--timeout", "20s", "--logs")
        assert "Succeeded" in told and "the pod's log" in told
        assert set(api.kept("Pod")) == {("Pod", "gw-timbr-gateway-test")}

    # An upgrade that cannot work changes nothing.
    done = run(HELMS[version], "upgrade", "gw", CHART, "--set", "replicaCount=2", blind, check=False)
    assert done.returncode != 0 and "these values cannot work" in done.stderr
    assert deployment(api)["replicas"] == 3

    helm("uninstall", "gw")
    assert set(api.kept()) == {("Pod", "gw-timbr-gateway-test")}, "Helm leaves the pod of the last test"


def notes_of(*settings: str, feature="minimal") -> str:
    command = [HELMS["helm 4"], "upgrade", "--install", "gw", CHART, "--values", values_of(feature), "--disable-openapi-validation"]
    for setting in settings:
        command += ["--set", setting]
    return run(*command).stdout.split("The URL for clients:")[1].split("A request without")[0].strip()


def test_the_notes_have_the_url_for_clients(api):
    assert notes_of(feature="ingress") == "https://timbr.example.com/"
    assert notes_of("ingress.tls=null", feature="ingress") == "http://timbr.example.com/"
    route = ["tlsRoute.enabled=true", "tlsRoute.parentRefs[0].name=g", "tlsRoute.hostnames[0]=t.example.com",
             "tlsRoute.apiVersion=gateway.networking.k8s.io/v1"]
    assert notes_of(*route) == "https://t.example.com/"

    def printed(script: str) -> str:
        path = f"{KUBECTL.parent}:{os.environ['PATH']}"
        return run("bash", "-ec", script, env={**os.environ, "PATH": path}).stdout.strip()

    script = notes_of("service.type=LoadBalancer")
    service = api.kept()["Service", "gw-timbr-gateway"]
    for address in ({"ip": "192.0.2.7"}, {"hostname": "lb.example.com"}):
        service["status"] = {"loadBalancer": {"ingress": [address]}}
        assert printed(script) == f"https://{[*address.values()][0]}:443/"

    script = notes_of("service.type=NodePort")
    ports = {port["name"]: port for port in api.kept()["Service", "gw-timbr-gateway"]["spec"]["ports"]}
    ports["https"]["nodePort"] = 30443
    node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}, "status": {"addresses": [{"address": "192.0.2.8"}]}}
    api.objects["Node", "", "n"] = node
    assert printed(script) == "https://192.0.2.8:30443/"


def test_the_notes_warn_of_an_ingress_without_trusted_proxies(api):
    command = [HELMS["helm 3"], "upgrade", "--install", "gw", CHART, "--values", values_of("ingress"), "--disable-openapi-validation"]
    warning = "WARNING: config.trusted_proxies is empty"
    assert warning not in run(*command).stdout
    assert warning in run(*command, "--set", "config.trusted_proxies=null").stdout


def test_the_tokens_of_a_file_outlive_the_release(api):
    helm = HELMS["helm 4"]
    run(helm, "install", "gw", CHART, "--values", values_of("file-store"), "--disable-openapi-validation")
    run(helm, "uninstall", "gw")
    assert set(api.kept()) == {("PersistentVolumeClaim", "gw-timbr-gateway")}


def test_kubectl_takes_what_is_rendered(api, tmp_path, counts):
    path = tmp_path / "all.yaml"
    path.write_text(rendered_text("metrics"))
    told = run(KUBECTL, "apply", "--validate=false", "--filename", path).stdout
    assert "deployment.apps/release-timbr-gateway created" in told
    counts["objects by kubectl"] += told.count("created")


@pytest.mark.parametrize("version", HELMS)
def test_the_package_can_be_signed_and_verified(version, tmp_path, counts):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}

    def gpg(*words):
        return run("gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", *words, env=environment)

    try:
        gpg("--quick-gen-key", "chart <chart@example.com>", "rsa2048", "sign", "1d")
        gpg("--output", tmp_path / "secret.gpg", "--export-secret-keys")
        gpg("--output", tmp_path / "public.gpg", "--export")
    finally:
        run("gpgconf", "--kill", "gpg-agent", env=environment, check=False)
    helm = HELMS[version]
    run(helm, "package", CHART, "--destination", tmp_path, "--sign", "--key", "chart", "--keyring", tmp_path / "secret.gpg")
    [package] = tmp_path.glob("*.tgz")
    public = ["--keyring", tmp_path / "public.gpg"]
    run(helm, "verify", package, *public)
    run(helm, "template", "r", package, "--values", values_of("minimal"))
    names = run("tar", "tzf", package).stdout.split()
    assert "timbr-gateway/values.schema.json" in names and "timbr-gateway/README.md" in names
    assert not [name for name in names if "/ci/" in name]
    # One byte more, and it is another chart.
    package.write_bytes(package.read_bytes() + b"\0")
    assert run(helm, "verify", package, *public, check=False).returncode != 0
    counts["packages signed and verified"] += 1
