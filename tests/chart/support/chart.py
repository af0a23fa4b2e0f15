"""The chart, rendered by the real helm."""

import functools
import os
import subprocess
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
CHART = REPOSITORY / "helm" / "timbr-gateway"
PLACE = REPOSITORY / "target" / "chart"
TOOLS = PLACE / "tools"
HELMS = {"helm 3": TOOLS / "helm3", "helm 4": TOOLS / "helm4"}
KUBECTL = TOOLS / "kubectl"
GATEWAY = os.environ["TIMBR_GATEWAY_BIN"]
FEATURES = sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml"))
NAMESPACE = "timbr"


class YamlAsHelmReadsIt(yaml.SafeLoader):
    """`=` and dates are text in Kubernetes' YAML, as in JSON."""


YamlAsHelmReadsIt.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def objects_of(text: str) -> list[dict]:
    return [document for document in yaml.load_all(text, YamlAsHelmReadsIt) if document]


def run(*command, check=True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **{"timeout": 120, **options})
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def values_of(feature: str) -> Path:
    return CHART / "ci" / f"{feature}-values.yaml"


@functools.cache
def rendered_text(feature: str, helm: str = "helm 3", *settings: str) -> str:
    command = [HELMS[helm], "template", "release", CHART, "--namespace", NAMESPACE, "--values", values_of(feature)]
    for setting in settings:
        command += ["--set", setting]
    return run(*command).stdout


def rendered(feature: str, helm: str = "helm 3", *settings: str) -> list[dict]:
    return objects_of(rendered_text(feature, helm, *settings))


def refusal(values: dict, helm: str = "helm 3") -> str:
    """What helm says about values that it refuses."""
    command = [HELMS[helm], "template", "release", CHART, "--values", "-"]
    done = run(*command, check=False, input=yaml.safe_dump(values))
    assert done.returncode != 0, f"rendered in spite of {values}"
    return done.stderr


def of_kind(objects: list[dict], kind: str) -> list[dict]:
    return [one for one in objects if one["kind"] == kind]


def pods(objects: list[dict]) -> list[tuple[str, dict, dict]]:
    """Name, labels and specification of each pod that the objects lead to."""
    found = []
    for one in objects:
        if one["kind"] == "Pod":
            found.append((one["metadata"]["name"], one["metadata"].get("labels", {}), one["spec"]))
        elif one["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = one["spec"]["template"]
            found.append((one["metadata"]["name"], template["metadata"].get("labels", {}), template["spec"]))
    return found


def containers(pod: dict) -> list[dict]:
    return pod.get("initContainers", []) + pod["containers"]


def gateway_config(objects: list[dict]) -> str:
    texts = [one["data"]["gateway.yaml"] for one in of_kind(objects, "ConfigMap") if "gateway.yaml" in one["data"]]
    assert len(texts) == 1, texts
    return texts[0]
