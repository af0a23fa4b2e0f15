"""Generated files are up to date. `BLESS=1` writes them again."""

import json
import os
from pathlib import Path

import pytest
import yaml

from support import manifests
from support.chart import CHART, GATEWAY, REPOSITORY, run
from support.readme import readme


def is_current(path: Path, expected: str) -> None:
    if os.environ.get("BLESS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(expected)
    now = path.read_text() if path.exists() else ""
    assert now == expected, f"{path.relative_to(REPOSITORY)} is out of date; BLESS=1 make chart writes it again"


def test_the_readme_tells_of_every_value():
    is_current(CHART / "README.md", readme())


def test_the_plain_manifests_are_what_the_chart_renders():
    is_current(REPOSITORY / "deploy" / "kubernetes" / "gateway.yaml", manifests.standalone())


@pytest.mark.parametrize("name", ["kustomization.yaml", "sidecar.yaml", "gateway.yaml"])
def test_the_sidecar_of_kustomize_is_the_one_of_the_chart(name):
    is_current(manifests.SIDECAR / "component" / name, manifests.component()[name])


@pytest.mark.parametrize("source", ["prometheus/rules.yaml", "grafana/timbr-gateway.json"])
def test_the_chart_has_a_copy_of_the_rules_and_the_dashboard(source):
    # A chart holds no links to what is outside of it.
    original = REPOSITORY / "deploy" / source
    is_current(CHART / "files" / original.name, original.read_text())


def test_the_chart_has_the_version_of_the_gateway():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    cargo = (REPOSITORY / "Cargo.toml").read_text().split('version = "', 1)[1].split('"')[0]
    assert chart["appVersion"] == cargo
    assert f":{cargo}\n" in chart["annotations"]["artifacthub.io/images"]


def test_the_schema_of_config_is_the_one_that_the_gateway_prints():
    path = CHART / "values.schema.json"
    schema = json.loads(path.read_text())
    config = json.loads(run(GATEWAY, "config", "schema").stdout)
    # What helm reads is draft 7, which has all that is used of the newer one.
    assert config.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert not {"$defs", "$ref", "prefixItems", "dependentRequired", "unevaluatedProperties"} & words(config)
    schema["properties"]["config"] = config
    is_current(path, json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


def words(node) -> set[str]:
    if isinstance(node, dict):
        return node.keys() | {word for value in node.values() for word in words(value)}
    return {word for value in node for word in words(value)} if isinstance(node, list) else set()


def test_the_schema_knows_the_values_and_no_others():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values, schema, path):
        if schema.get("type") != "object" or "properties" not in schema:
            return
        known = schema["properties"].keys()
        optional = {"issuerRef", "privateKey", "resources", "timeouts", "startupProbe", "readinessProbe", "livenessProbe", "config"}
        assert values.keys() <= known, f"{path}: {values.keys() - known}"
        if path.split(".")[-1] not in optional:
            assert known <= values.keys(), f"{path}: {known - values.keys()}"
            assert schema.get("additionalProperties") is False or path == "global", path
            for key, value in values.items():
                if isinstance(value, dict):
                    compare(value, schema["properties"][key], f"{path}.{key}".lstrip("."))

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
