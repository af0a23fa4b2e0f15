"""The chart's README, made from the comments of values.yaml."""

import json
import re

import yaml

from support.chart import CHART

HEAD = """# timbr-gateway

{description}. See [docs/kubernetes.md](../../docs/kubernetes.md) for
installation, upgrade and operation, and [ci](ci) for a values file for each feature.

```sh
kubectl create secret generic timbr-gateway-salt --from-literal=salt="$API_AUTH_SALT"
helm install timbr-gateway helm/timbr-gateway \\
  --set secrets.salt.existingSecret=timbr-gateway-salt \\
  --set config.upstream.url=http://timbr-api:9000 \\
  --set config.auth.verifier=delegate --set config.upstream.credential=delegate
helm test timbr-gateway --logs
```

Requires Kubernetes {kubernetes}, Helm 3 or 4. The chart rejects values that cannot work, such as several replicas with tokens
in memory, a grace period shorter than the drain, or a secret in `config`; the error contains the remedy.
"""

FOOT = """
This page is generated from the comments of `values.yaml` with `BLESS=1 make chart`.
"""

ENTRY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z0-9_.-]+):(?P<rest>.*)$")


def undocumented(values: dict, described: set[str], path=()) -> list[str]:
    """Values that neither have a description nor stand below one that has."""
    found = []
    for key, value in values.items():
        here = (*path, key)
        if ".".join(here) in described:
            continue
        if isinstance(value, dict) and value:
            found += undocumented(value, described, here)
        else:
            found.append(".".join(here))
    return found


def at(values: dict, path: list[str]):
    for key in path:
        values = values[key]
    return values


def rows(text: str):
    """Sections, and a path with its description for each described value, in the order of the file."""
    path: list[str] = []
    described: list[str] = []
    for line in text.splitlines():
        comment = line.strip()
        entry = ENTRY.match(line)
        if comment.startswith("# ## "):
            yield comment.removeprefix("# ## "), None
        elif comment.startswith("# -- "):
            described = [comment.removeprefix("# -- ")]
        elif comment.startswith("# ") and described:
            described.append(comment.removeprefix("# "))
        elif entry and not comment.startswith("#"):
            path = path[: len(entry["indent"]) // 2] + [entry["key"]]
            if described:
                yield ".".join(path), " ".join(described)
            described = []
        else:
            described = []


def readme() -> str:
    text = (CHART / "values.yaml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load(text)
    lines = [HEAD.format(description=chart["description"], kubernetes=chart["kubeVersion"].removesuffix("-0"))]
    described = set()
    for name, description in rows(text):
        if description is None:
            lines.append(f"\n## {name}\n\n| value | default | meaning |\n| --- | --- | --- |\n")
            continue
        described.add(name)
        default = json.dumps(at(values, name.split(".")), ensure_ascii=False)
        lines.append(f"| `{name}` | `{default}` | {description.replace('|', chr(92) + '|')} |\n")
    missing = undocumented(values, described)
    assert not missing, f"values.yaml says nothing about {missing}"
    return "".join([*lines, FOOT])
