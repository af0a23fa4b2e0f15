"""Plain manifests, made from what the chart renders."""

import functools
import shutil
import tempfile
from pathlib import Path

import yaml

from support.chart import CHART, HELMS, REPOSITORY, gateway_config, objects_of, of_kind, run
from support.semantics import gateways

NOTE = "# Generated from the chart by `BLESS=1 make chart`; do not edit.\n"
SIDECAR = REPOSITORY / "deploy" / "sidecar"


class Dumper(yaml.SafeDumper):
    """Several lines as a block, and no references."""

    def ignore_aliases(self, _):
        return True

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


def _text(dumper, text):
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)


def dumped(objects: list[dict]) -> str:
    return "---\n".join(yaml.dump(one, Dumper=Dumper, sort_keys=False, width=1000) for one in objects)


def plain(one: dict) -> dict:
    """Without what only helm needs."""
    metadatas = [one["metadata"]]
    if "template" in one.get("spec", {}):
        metadatas.append(one["spec"]["template"]["metadata"])
    for metadata in metadatas:
        metadata.pop("namespace", None)
        for label in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
            metadata.get("labels", {}).pop(label, None)
    return one


def standalone() -> str:
    """deploy/kubernetes/gateway.yaml"""
    values = REPOSITORY / "deploy" / "kubernetes" / "values.yaml"
    text = run(HELMS["helm 3"], "template", "timbr-gateway", CHART, "--namespace", "timbr", "--values", values).stdout
    return NOTE + dumped([plain(one) for one in objects_of(text)])


@functools.cache
def beside_a_backend() -> list[dict]:
    """What the example chart with the sidecar renders."""
    with tempfile.TemporaryDirectory() as folder:
        # Its dependency is fetched into it.
        copy = Path(folder) / "deploy" / "sidecar" / "helm"
        shutil.copytree(SIDECAR / "helm", copy, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
        shutil.copytree(CHART, Path(folder) / "helm" / "timbr-gateway")
        run(HELMS["helm 3"], "dependency", "update", copy)
        return objects_of(run(HELMS["helm 3"], "template", "release", copy, "--namespace", "timbr").stdout)


def component() -> dict[str, str]:
    """The files of deploy/sidecar/component: what turns a Deployment into one with the gateway beside it."""
    objects = beside_a_backend()
    [(_, pod, container)] = gateways(objects)
    volumes = [dict(volume) for volume in pod["volumes"]]
    for volume in volumes:
        if volume["name"] == "gateway-config":
            volume["configMap"] = {"name": "timbr-gateway"}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "any"},
        "spec": {"template": {"spec": {"initContainers": [container], "volumes": volumes}}},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "configMapGenerator": [{"name": "timbr-gateway", "files": ["gateway.yaml"]}],
        "patches": [{"path": "sidecar.yaml", "target": {"group": "apps", "kind": "Deployment"}}],
    }
    return {
        "kustomization.yaml": NOTE + dumped([kustomization]),
        "sidecar.yaml": NOTE + dumped([patch]),
        "gateway.yaml": NOTE + gateway_config(objects).rstrip() + "\n",
    }
