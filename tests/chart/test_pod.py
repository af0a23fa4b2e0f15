"""The pod of the sidecar, run by podman with the real image: containers, users, files and signals are real.

podman 4 knows no native sidecars, no probes by HTTP and no hooks: here the gateway is an ordinary container, and starts
when the backend does. The backend is the demo's.
"""

import copy
import http.client
import json
import os
import socket
import ssl
import time

import pytest
import yaml

from support.chart import GATEWAY, REPOSITORY, of_kind, pods, rendered, run
from support.manifests import beside_a_backend
from support.mounted import SERVICE, lay_out, pki, salt

PACKAGING = REPOSITORY / "tests" / "packaging"
PODMAN = PACKAGING / "podman"
IMAGE = "localhost/timbr-gateway:test"
POD = "timbr-chart-test"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_podman_takes_it(objects: list[dict], root, ports: dict[str, int]) -> dict:
    """The pod, with the folders of its volumes laid out below `root`, and its ports on this machine's loopback address."""
    pod = copy.deepcopy(pods(objects)[0][2])
    [gateway], [backend] = pod.pop("initContainers"), pod["containers"]
    lay_out(objects, pod, gateway, root, is_moved=False)
    places = {mount["name"]: mount["mountPath"] for mount in gateway["volumeMounts"]}
    pod["volumes"] = [
        {"name": name, "hostPath": {"path": f"{root}{place}", "type": "Directory"}} for name, place in places.items()
    ]
    del gateway["restartPolicy"]
    for container in (gateway, backend):
        container["image"] = IMAGE
        for key in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "resources"):
            container.pop(key, None)
    for port in gateway["ports"]:
        port.update(hostPort=ports[port["name"]], hostIP="127.0.0.1")
    backend["args"] = ["demo", "--backend-only", backend["args"][1]]
    pod["containers"] = [gateway, backend]
    pod["restartPolicy"] = "Never"
    pod["hostAliases"] = [{"ip": "127.0.0.1", "hostnames": [SERVICE]}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "labels": {"app": POD}}, "spec": pod}


class RunningPod:
    def __init__(self, ports, root):
        self.ports = ports
        self.root = root
        (root / "ca.pem").write_text(pki()[0])
        self.tls = ssl.create_default_context(cafile=str(root / "ca.pem"))

    def connect(self):
        plain = socket.create_connection(("127.0.0.1", self.ports["https"]), timeout=10)
        connection = http.client.HTTPConnection("gateway")
        connection.sock = self.tls.wrap_socket(plain, server_hostname="gateway")
        return connection

    def ask(self, method, path, fields, body=None):
        connection = self.connect()
        connection.request(method, path, body, fields)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def token(self) -> str:
        environment = {"API_AUTH_SALT": salt()}
        bearer = run(GATEWAY, "bearer", "--user", "alice", "--password-stdin", input="wonderland", env=environment).stdout.strip()
        fields = {"Content-Type": "application/json", "Authorization": f"Bearer {bearer}"}
        status, body = self.ask("POST", "/timbr/api/get_token", fields)
        assert status == 200, body
        return body["data"][0]

    def readiness(self) -> int | None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports["gateway-admin"], timeout=2)
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except OSError:
            return None

    def wait_until(self, condition, what: str):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, f"{what}:\n{self.logs()}"
            time.sleep(0.02)

    def logs(self) -> str:
        done = run(PODMAN, "logs", f"{POD}-timbr-gateway", check=False)
        return done.stdout + done.stderr

    def state(self, name="timbr-gateway") -> dict:
        return json.loads(run(PODMAN, "inspect", f"{POD}-{name}").stdout)[0]


@pytest.fixture
def pod(tmp_path):
    run(PODMAN, "pod", "rm", "--force", "--ignore", "--time", "0", POD)
    ports = {"https": free_port(), "gateway-admin": free_port()}
    manifest = as_podman_takes_it(beside_a_backend(), tmp_path, ports)
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(manifest))
    run(PODMAN, "play", "kube", "--network", "podman", tmp_path / "pod.yaml")
    running = RunningPod(ports, tmp_path)
    try:
        running.wait_until(lambda: running.readiness() == 200, "the gateway is not ready")
        yield running
    finally:
        run(PODMAN, "pod", "rm", "--force", "--ignore", "--time", "0", POD)


@pytest.fixture(scope="module", autouse=True)
def image():
    """The image of the Dockerfile, built if it is not there or not this program's."""
    run(PACKAGING / "setup")
    run(PACKAGING / "build", timeout=600)


QUERY = ("POST", "/timbr/openapi/ontology/sales/query")
SELECT = "SELECT name, country FROM customer LIMIT 2"


def test_the_round_trip_through_the_sidecar(pod, counts):
    status, body = pod.ask("GET", "/timbr/api/get_ontologies/", {"Content-Type": "application/json"})
    assert (status, body["reason"]) == (401, "api_key_missing")
    fields = {"Content-Type": "application/text", "x-api-key": pod.token()}
    status, body = pod.ask(*QUERY, fields, SELECT)
    assert status == 200 and body[0]["name"] == "Ada Lovelace"
    counts["pods run by podman"] += 1

    # As in the manifest: a different user than the backend's, and a read-only root file system.
    assert pod.state()["Config"]["User"].startswith("65532")
    assert pod.state("backend")["Config"]["User"].startswith("10001")
    assert pod.state()["HostConfig"]["ReadonlyRootfs"] and not pod.state()["EffectiveCaps"]

    # Only the gateway, which is in the same pod, can reach the backend.
    infra = json.loads(run(PODMAN, "pod", "inspect", POD).stdout)["InfraContainerID"]
    networks = json.loads(run(PODMAN, "inspect", infra).stdout)[0]["NetworkSettings"]["Networks"]
    address = networks["podman"]["IPAddress"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 8000), timeout=2)
    socket.create_connection((address, 8443), timeout=2).close()


@pytest.mark.parametrize("name", ["doctor", "doctor-by-service"])
def test_what_helm_test_runs_finds_nothing_broken(pod, name):
    [test] = of_kind(rendered("test-by-service"), "Pod")
    [container] = [each for each in test["spec"]["containers"] if each["name"] == name]
    places = {"test-password/password": "wonderland", "test-authority/ca.crt": pki()[0]}
    for place, content in places.items():
        path = pod.root / "etc" / "timbr-gateway" / place
        path.parent.mkdir()
        path.write_text(content)
    # The Service's name leads to the pod itself, and to the port of the container.
    arguments = [word.replace(f"{SERVICE}:443", f"{SERVICE}:8443").replace("--user=probe", "--user=alice") for word in container["args"]]
    assert any(f"https://{SERVICE}:8443" in word for word in arguments) == (name == "doctor-by-service")
    mounts = [f"--volume={pod.root}/etc/timbr-gateway:/etc/timbr-gateway:ro"]
    done = run(PODMAN, "run", "--rm", "--pod", POD, "--read-only", "--cap-drop=all", *mounts, IMAGE,
               *arguments, f"--query={SELECT}", check=False)
    # The demo backend has no MCP and no agent log, which is no fault.
    assert done.returncode == 0 and "All checks passed. Skipped: route (2 times)." in done.stdout, done.stdout + done.stderr


def test_a_request_in_flight_is_answered_when_the_sidecar_is_stopped(pod):
    token = pod.token()
    query = SELECT.encode()
    connection = pod.connect()
    connection.putrequest(*QUERY)
    fields = {"Content-Type": "application/text", "x-api-key": token, "Content-Length": str(len(query))}
    for name, value in fields.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(query[:10])
    pod.wait_until(lambda: in_flight(pod) == 1, "the request has not arrived")

    run(PODMAN, "kill", "--signal", "TERM", f"{POD}-timbr-gateway")
    pod.wait_until(lambda: pod.readiness() != 200, "it is ready although it ends")
    assert pod.state()["State"]["Running"]
    connection.send(query[10:])
    answer = connection.getresponse()
    assert answer.status == 200 and json.loads(answer.read())[0]["name"] == "Ada Lovelace"
    pod.wait_until(lambda: not pod.state()["State"]["Running"], "it does not end")
    assert pod.state()["State"]["ExitCode"] == 0


def test_the_pod_ends_at_once_when_nothing_is_in_flight(pod):
    began = time.monotonic()
    run(PODMAN, "stop", "--time", "40", f"{POD}-timbr-gateway")
    assert pod.state()["State"]["ExitCode"] == 0
    assert time.monotonic() - began < 10


def in_flight(pod) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", pod.ports["gateway-admin"], timeout=2)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith("timbr_gateway_requests_in_flight"))
