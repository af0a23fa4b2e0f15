"""The gateway itself reads what the chart makes of the values."""

import copy

import pytest
import yaml

from support.chart import FEATURES, gateway_config, rendered
from support.mounted import check
from support.semantics import gateways


@pytest.mark.parametrize("feature", [feature for feature in FEATURES if feature != "sidecar"])
def test_the_gateway_takes_the_configuration(feature, tmp_path, counts):
    objects = rendered(feature)
    [(_, pod, container)] = gateways(objects)
    done = check(objects, pod, container, tmp_path)
    assert done.returncode == 0, done.stderr
    counts["configurations by the gateway"] += 1


def test_a_file_that_is_not_mounted_is_missed(tmp_path):
    objects = copy.deepcopy(rendered("impersonate"))
    [(_, pod, container)] = gateways(objects)
    container["volumeMounts"] = [each for each in container["volumeMounts"] if each["name"] != "service-key"]
    done = check(objects, pod, container, tmp_path)
    assert done.returncode != 0 and "upstream.api_key: cannot read the file" in done.stderr


def test_every_file_that_the_configuration_names_is_mounted():
    def files(node):
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            if isinstance(value, str) and value.startswith("/etc/timbr-gateway/"):
                yield value
            elif isinstance(value, dict | list):
                yield from files(value)

    for feature in FEATURES:
        objects = rendered(feature)
        for _, pod, container in gateways(objects):
            sources = {volume["name"]: volume.get("secret") or volume.get("configMap") or {} for volume in pod["volumes"]}
            there = {
                f"{mount['mountPath']}/{item['path']}"
                for mount in container["volumeMounts"] for item in sources[mount["name"]].get("items", [])
            }
            named = set(files(yaml.safe_load(gateway_config(objects))))
            assert named == there, feature
