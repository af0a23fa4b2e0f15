"""What no schema says about objects: whether they fit each other, and what they are not to hold."""

import re
from collections.abc import Iterator

import yaml

from support.chart import containers, gateway_config, of_kind, pods

QUANTITY = re.compile(r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$")
SECRET_OPTIONS = {
    ("api_auth_salt",),
    ("listen", "admin_token"),
    ("upstream", "api_key"),
    ("store", "key"),
    ("store", "password"),
    ("store", "sentinel_password"),
    ("ldap", "bind_password"),
}


def problems(objects: list[dict]) -> list[str]:
    """Everything that is wrong with them, each a sentence that begins with the object's name."""
    checks = [
        names, selectors, monitors, ports, probes, quantities, restricted, images, secrecy, mounts, shutdown, scaling, identity,
    ]
    return [problem for check in checks for problem in check(objects)]


def names(objects) -> Iterator[str]:
    seen = set()
    for one in objects:
        name = one["metadata"]["name"]
        if len(name) > 63:
            yield f"{name}: its name has more than 63 characters"
        key = (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), name)
        if key in seen:
            yield f"{name}: there are two of {one['kind']}"
        seen.add(key)


def fits(selector: dict, labels: dict) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def selectors(objects) -> Iterator[str]:
    all_pods = pods(objects)
    workloads = of_kind(objects, "Deployment")
    for one in workloads:
        template = one["spec"]["template"]["metadata"]["labels"]
        selector = one["spec"]["selector"]["matchLabels"]
        if not fits(selector, template):
            yield f"{one['metadata']['name']}: its selector does not fit its pods"
        changing = selector.keys() & {"helm.sh/chart", "app.kubernetes.io/version"}
        if changing:
            yield f"{one['metadata']['name']}: its selector changes with the version: {changing}"
        for constraint in one["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
            if not fits(constraint["labelSelector"]["matchLabels"], template):
                yield f"{one['metadata']['name']}: a topologySpreadConstraint fits none of its pods"
    for one in objects:
        kind, spec = one["kind"], one.get("spec", {})
        selector = {
            "Service": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels"),
            "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
        }.get(kind)
        if selector is not None:
            chosen = [name for name, labels, _ in all_pods if fits(selector, labels)]
            if chosen != [one["metadata"]["name"] for one in workloads]:
                yield f"{one['metadata']['name']}: {kind} chooses {chosen or 'no pod'}"
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        if target["name"] not in [one["metadata"]["name"] for one in of_kind(objects, target["kind"])]:
            yield f"{one['metadata']['name']}: scales {target['name']}, which is not there"


def monitors(objects) -> Iterator[str]:
    for one in of_kind(objects, "ServiceMonitor"):
        name, spec = one["metadata"]["name"], one["spec"]
        services = [
            service for service in of_kind(objects, "Service") if fits(spec["selector"]["matchLabels"], service["metadata"]["labels"])
        ]
        if len(services) != 1:
            yield f"{name}: chooses {len(services)} Services"
            continue
        if services[0]["metadata"]["namespace"] not in spec["namespaceSelector"]["matchNames"]:
            yield f"{name}: looks into other namespaces than its Service's"
        known = [port["name"] for port in services[0]["spec"]["ports"]]
        yield from (f"{name}: no port {each['port']}" for each in spec["endpoints"] if each["port"] not in known)


def ports(objects) -> Iterator[str]:
    all_pods = pods(objects)
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in of_kind(objects, "Service")}
    for one in of_kind(objects, "Service"):
        of_pods = {
            port["name"]
            for _, labels, pod in all_pods if fits(one["spec"]["selector"], labels)
            for container in containers(pod) for port in container.get("ports", [])
        }
        for port in one["spec"]["ports"]:
            if port["targetPort"] not in of_pods:
                yield f"{one['metadata']['name']}: no container has a port {port['targetPort']}"
    for one in of_kind(objects, "Ingress"):
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                if service["port"]["name"] not in [port["name"] for port in services.get(service["name"], [])]:
                    yield f"{one['metadata']['name']}: {service['name']} has no port {service['port']['name']}"
    for one in of_kind(objects, "HTTPRoute") + of_kind(objects, "TLSRoute"):
        for backend in (backend for rule in one["spec"]["rules"] for backend in rule["backendRefs"]):
            if backend["port"] not in [port["port"] for port in services.get(backend["name"], [])]:
                yield f"{one['metadata']['name']}: {backend['name']} has no port {backend['port']}"
    for one in of_kind(objects, "BackendTLSPolicy"):
        for target in one["spec"]["targetRefs"]:
            if target["sectionName"] not in [port["name"] for port in services.get(target["name"], [])]:
                yield f"{one['metadata']['name']}: {target['name']} has no port {target['sectionName']}"
    for one in of_kind(objects, "NetworkPolicy"):
        of_pods = {port["name"] for _, _, pod in all_pods for each in containers(pod) for port in each.get("ports", [])}
        for port in (port for rule in one["spec"]["ingress"] for port in rule["ports"]):
            if port["port"] not in of_pods:
                yield f"{one['metadata']['name']}: no container has a port {port['port']}"


def gateways(objects) -> Iterator[tuple[str, dict, dict]]:
    """Pods that run the gateway, and its container."""
    for name, _, pod in pods(objects):
        for container in containers(pod):
            if container["name"] == "timbr-gateway":
                yield name, pod, container


def probes(objects) -> Iterator[str]:
    for name, _, container in gateways(objects):
        listen = yaml.safe_load(gateway_config(objects))["listen"]
        numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            asked = container.get(probe, {}).get("httpGet", {})
            if asked.get("path") != path:
                yield f"{name}: its {probe} does not ask {path}"
            if not listen["admin"].endswith(f":{numbers.get(asked.get('port'))}"):
                yield f"{name}: its {probe} asks port {asked.get('port')}, but the admin listener is {listen['admin']}"
        for listener in ("https", "http"):
            address = listen[listener]
            loopback = address.startswith("127.")
            if address == "off" or loopback:
                if listener in numbers:
                    yield f"{name}: a port {listener}, where nothing from outside is taken"
            elif not address.endswith(f":{numbers.get(listener)}"):
                yield f"{name}: port {listener} is {numbers.get(listener)}, but listen.{listener} is {address}"
        if listen["admin"].startswith(("127.", "[::1]")):
            yield f"{name}: the kubelet cannot reach the admin listener"


def quantities(objects) -> Iterator[str]:
    for name, _, pod in pods(objects):
        for container in containers(pod):
            for kind in ("requests", "limits"):
                for resource, quantity in container.get("resources", {}).get(kind, {}).items():
                    if not QUANTITY.match(str(quantity)):
                        yield f"{name}: {kind} of {resource} is {quantity}"
    for one in of_kind(objects, "PersistentVolumeClaim"):
        quantity = one["spec"]["resources"]["requests"]["storage"]
        if not QUANTITY.match(str(quantity)):
            yield f"{one['metadata']['name']}: storage is {quantity}"


def restricted(objects) -> Iterator[str]:
    """The restricted Pod Security Standard, and a root that cannot be written to."""
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for name, _, pod in pods(objects):
        whole = pod.get("securityContext", {})
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{name}: {key}"
        for volume in pod.get("volumes", []):
            if not allowed & volume.keys():
                yield f"{name}: the volume {volume['name']} is of a kind that is not allowed"
        for container in containers(pod):
            own = container.get("securityContext", {})
            both = {**whole, **own}
            wanted = {
                "runAsNonRoot": both.get("runAsNonRoot") is True,
                "runAsUser": both.get("runAsUser") != 0,
                "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
                "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
                "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
                "privileged": not own.get("privileged"),
                "hostPort": not any("hostPort" in port for port in container.get("ports", [])),
            }
            yield from (f"{name}: {container['name']} is not restricted: {key}" for key, good in wanted.items() if not good)


def images(objects) -> Iterator[str]:
    for name, _, pod in pods(objects):
        for container in containers(pod):
            last = container["image"].rsplit("/", 1)[-1]
            if "@sha256:" not in last and (":" not in last or last.endswith(":latest")):
                yield f"{name}: {container['image']} is not a version"


def secrecy(objects) -> Iterator[str]:
    yield from (f"{one['metadata']['name']}: a Secret that the chart makes" for one in of_kind(objects, "Secret"))
    for one in of_kind(objects, "ConfigMap"):
        config = yaml.safe_load(one["data"].get("gateway.yaml", "{}"))
        for option in SECRET_OPTIONS:
            at = config
            for word in option:
                at = at.get(word) if isinstance(at, dict) else None
            if at is not None:
                yield f"{one['metadata']['name']}: {'.'.join(option)} in a ConfigMap"
    for name, _, pod in pods(objects):
        for container in containers(pod):
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    yield f"{name}: {variable['name']} comes from a Secret; mount it as a file"
            yield from (f"{name}: {source} puts a Secret into the environment" for source in container.get("envFrom", []) if "secretRef" in source)


def mounts(objects) -> Iterator[str]:
    for name, _, pod in pods(objects):
        there = {volume["name"] for volume in pod.get("volumes", [])}
        used = set()
        for container in containers(pod):
            seen = set()
            for mount in container.get("volumeMounts", []):
                used.add(mount["name"])
                if "subPath" in mount or "subPathExpr" in mount:
                    yield f"{name}: {mount['mountPath']} is a subPath, which is never renewed"
                if mount["name"] not in there:
                    yield f"{name}: no volume {mount['name']}"
                if mount["mountPath"] in seen:
                    yield f"{name}: {mount['mountPath']} is mounted twice"
                seen.add(mount["mountPath"])
        yield from (f"{name}: the volume {volume} is mounted nowhere" for volume in sorted(there - used))
        for volume in pod.get("volumes", []):
            for kind in ("secret", "configMap"):
                if kind in volume and "optional" in volume[kind]:
                    yield f"{name}: {volume['name']} may be missing"


def seconds(span: str) -> float:
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9]+)\s*(ms|s|m|h)", span))


def shutdown(objects) -> Iterator[str]:
    for name, pod, _ in gateways(objects):
        drain = yaml.safe_load(gateway_config(objects)).get("drain", {})
        needed = seconds(drain.get("delay", "0s")) + seconds(drain.get("timeout", "30s"))
        if pod.get("terminationGracePeriodSeconds", 30) < needed + 5:
            yield f"{name}: is killed after {pod.get('terminationGracePeriodSeconds', 30)} s, while its drain takes {needed} s"


def scaling(objects) -> Iterator[str]:
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind(objects, "HorizontalPodAutoscaler")}
    for one in of_kind(objects, "Deployment"):
        name, replicas = one["metadata"]["name"], one["spec"].get("replicas")
        if name in scaled and replicas is not None:
            yield f"{name}: has replicas, and an autoscaler too"
        if name not in scaled and replicas is None:
            yield f"{name}: has no replicas"


def identity(objects) -> Iterator[str]:
    for name, pod, _ in gateways(objects):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name}: has a token of its ServiceAccount"
        accounts = [one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")]
        if accounts and pod.get("serviceAccountName") not in accounts:
            yield f"{name}: its ServiceAccount {pod.get('serviceAccountName')} is not there"
