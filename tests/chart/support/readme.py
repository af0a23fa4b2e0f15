"""The chart's README, made from the comments of values.yaml."""

import json
import re

import yaml

from support.chart import CHART

HEAD = """# timbr-gateway

{description}. See [docs/kubernetes.md](../../docs/kubernetes.md) for how to install, upgrade and
operate it, and the files of [ci](ci) for a set of values for each feature.

```sh
kubectl create secret generic timbr-gateway-salt --from-literal=salt="$API_AUTH_SALT"
helm install timbr-gateway helm/timbr-gateway \\
  --set secrets.salt.existingSecret=timbr-gateway-salt \\
  --set config.upstream.url=http://timbr-backend:8000
helm test timbr-gateway --logs
```

Needs Kubernetes {kubernetes}, Helm 3 or 4. What cannot work is not rendered: several replicas whose tokens
are in the memory of each, a grace period that is shorter than the drain, a secret in `config`; the error says what to do.
"""

FOOT = """
This page is made from the comments of `values.yaml`: `BLESS=1 make chart` writes it anew.
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
