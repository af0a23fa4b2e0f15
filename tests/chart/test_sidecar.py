"""The gateway beside a backend: by Helm, by Kustomize; and the plain manifests."""

import copy

import kubernetes_validate
import pytest
import yaml

from support.chart import KUBECTL, REPOSITORY, containers, objects_of, of_kind, pods, run
from support.manifests import SIDECAR, beside_a_backend
from support.mounted import check
from support.semantics import gateways, problems, seconds
from support.chart import gateway_config


def kustomized(folder) -> list[dict]:
    return objects_of(run(KUBECTL, "kustomize", folder).stdout)


SOURCES = {
    "the example chart": beside_a_backend,
    "the component": lambda: kustomized(SIDECAR / "example"),
    "the plain manifests": lambda: kustomized(REPOSITORY / "deploy" / "kubernetes"),
}
SIDECARS = [source for source in SOURCES if source != "the plain manifests"]


@pytest.mark.parametrize("version", ["1.29", "1.31", "1.34", "1.37"])
@pytest.mark.parametrize("source", SOURCES)
def test_kubernetes_knows_every_field(source, version, counts):
    for one in SOURCES[source]():
        kubernetes_validate.validate(one, version, strict=True)
        counts["objects by Kubernetes' schemas"] += 1


@pytest.mark.parametrize("source", SOURCES)
def test_objects_fit_each_other(source, counts):
    assert problems(SOURCES[source]()) == []
    counts["renderings by sense"] += 1


@pytest.mark.parametrize("source", SOURCES)
def test_the_gateway_takes_the_configuration(source, tmp_path, counts):
    objects = SOURCES[source]()
    [(_, pod, container)] = gateways(objects)
    done = check(objects, pod, container, tmp_path)
    assert done.returncode == 0, done.stderr
    counts["configurations by the gateway"] += 1


@pytest.mark.parametrize("source", SIDECARS)
def test_the_gateway_is_a_native_sidecar_in_front_of_the_backend(source):
    objects = SOURCES[source]()
    [(_, _, pod)] = pods(objects)
    [gateway] = pod["initContainers"]
    [backend] = pod["containers"]
    assert gateway["restartPolicy"] == "Always" and "startupProbe" in gateway
    config = yaml.safe_load(gateway_config(objects))
    # Only the gateway is reached from outside, and it reaches the backend on the loopback address.
    assert config["upstream"]["url"] == f"http://{backend['args'][1]}" == "http://127.0.0.1:8000"
    assert "ports" not in backend
    assert config["listen"]["http"] == "off" and gateway["securityContext"]["runAsUser"] == 65532
    # The backend's hook and the gateway's drain fit into the time that the kubelet gives.
    hook = backend["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > hook + seconds(config["drain"]["delay"]) + seconds(config["drain"]["timeout"])
    # Secrets are the gateway's alone, and readable for it without a group of the pod's.
    assert not backend.get("volumeMounts")
    assert all(volume["secret"]["defaultMode"] == 0o444 for volume in pod["volumes"] if "secret" in volume)


def test_the_component_leaves_what_is_there(tmp_path):
    [before] = of_kind(objects_of((SIDECAR / "example" / "backend.yaml").read_text()), "Deployment")
    pod = before["spec"]["template"]["spec"]
    pod["initContainers"] = [{"name": "migrate", "image": "registry.example.com/migrate:1"}]
    pod["volumes"] = [{"name": "data", "emptyDir": {}}]
    other = copy.deepcopy(before)
    other["metadata"]["name"] = "timbr-jobs"
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([before, other]))
    (tmp_path / "component").symlink_to(SIDECAR / "component")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["all.yaml"], "components": ["component"]}))
    deployments = of_kind(
        objects_of(run(KUBECTL, "kustomize", tmp_path, "--load-restrictor", "LoadRestrictionsNone").stdout), "Deployment",
    )
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert {container["name"] for container in containers(pod)} == {"migrate", "backend", "timbr-gateway"}
        assert "data" in {volume["name"] for volume in pod["volumes"]}
