"""A stand-in for the Kubernetes API, for what helm and kubectl do as clients: discovery, objects, patches, watches.

It keeps objects in memory. It judges nothing: no admission, no defaults, no ownership of fields. What it shows is which
objects a release makes, changes and removes. Deployments are available at once, and pods have succeeded.
"""

import base64
import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import yaml

# Group and version, and what is in it: plural, kind, whether it is in a namespace.
RESOURCES = {
    "v1": [
        ("namespaces", "Namespace", False),
        ("nodes", "Node", False),
        ("pods", "Pod", True),
        ("services", "Service", True),
        ("secrets", "Secret", True),
        ("configmaps", "ConfigMap", True),
        ("serviceaccounts", "ServiceAccount", True),
        ("persistentvolumeclaims", "PersistentVolumeClaim", True),
    ],
    "apps/v1": [("deployments", "Deployment", True), ("replicasets", "ReplicaSet", True)],
    "autoscaling/v2": [("horizontalpodautoscalers", "HorizontalPodAutoscaler", True)],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget", True)],
    "networking.k8s.io/v1": [("ingresses", "Ingress", True), ("networkpolicies", "NetworkPolicy", True)],
    "cert-manager.io/v1": [("certificates", "Certificate", True)],
    "monitoring.coreos.com/v1": [("servicemonitors", "ServiceMonitor", True), ("prometheusrules", "PrometheusRule", True)],
    "gateway.networking.k8s.io/v1": [("httproutes", "HTTPRoute", True), ("tlsroutes", "TLSRoute", True)],
}
PATH = re.compile(r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[^/]+))?")


def merged(old, new):
    """A merge patch, and of lists of named things the strategic kind."""
    if isinstance(old, dict) and isinstance(new, dict):
        result = dict(old)
        for key, value in new.items():
            if value is None:
                result.pop(key, None)
            elif not key.startswith("$"):
                result[key] = merged(result.get(key), value)
        return result
    lists = isinstance(old, list) and isinstance(new, list) and new
    if lists and all(isinstance(each, dict) and "name" in each for each in old + new):
        by_name = {each["name"]: each for each in old}
        for each in new:
            by_name[each["name"]] = merged(by_name.get(each["name"], {}), each)
        return list(by_name.values())
    return new


def fields(message: bytes):
    """Numbers and values of a protobuf message."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        value = number()
        if tag & 7 == 2:
            value, at = message[at : at + value], at + value
        elif tag & 7 != 0:
            raise ValueError(f"wire type {tag & 7}")
        yield tag >> 3, value


def object_of(body: bytes) -> dict:
    """JSON or YAML, or the protobuf in which helm sends the Secret of its release."""
    if not body.startswith(b"k8s\0"):
        return yaml.safe_load(body)
    envelope = dict(fields(body[4:]))
    kind = dict(fields(envelope[1]))[2].decode()
    assert kind == "Secret", kind
    found = {"metadata": {}, "data": {}}

    def entry(message):
        pair = dict(fields(message))
        return pair[1].decode(), pair.get(2, b"")

    for number, value in fields(envelope[2]):
        if number == 1:
            for meta, inner in fields(value):
                if meta in (1, 3):
                    found["metadata"][{1: "name", 3: "namespace"}[meta]] = inner.decode()
                elif meta in (11, 12):
                    key, text = entry(inner)
                    found["metadata"].setdefault({11: "labels", 12: "annotations"}[meta], {})[key] = text.decode()
        elif number == 2:
            key, data = entry(value)
            found["data"][key] = base64.b64encode(data).decode()
        elif number == 3:
            found["type"] = value.decode()
    return found


def root_of(version: str) -> str:
    return f"/api/{version}" if "/" not in version else f"/apis/{version}"


class Api(ThreadingHTTPServer):
    """Listens on a free port of the loopback address; `objects` is what there is, by kind, namespace and name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Request)
        self.objects: dict[tuple[str, str, str], dict] = {}
        self.changed = threading.Condition()
        self.changes: list[tuple[int, str, dict]] = []
        self.revision = 1
        self.ends = False
        default = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}}
        self.objects[("Namespace", "", "default")] = default
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        with self.changed:
            self.ends = True
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def tell(self, what: str, one: dict):
        """Who watches hears of it."""
        self.changes.append((self.revision, what, one))
        self.changed.notify_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def kept(self, *kinds: str) -> dict[tuple[str, str], dict]:
        """What there is besides what helm keeps for itself."""
        return {
            (kind, name): one
            for (kind, _, name), one in self.objects.items()
            if kind != "Namespace" and not name.startswith("sh.helm.") and (not kinds or kind in kinds)
        }


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def log_message(self, *_):
        pass

    def answer(self, status: int, body, media="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def status(self, code: int, reason: str, message=""):
        outcome = "Failure" if code >= 400 else "Success"
        self.answer(code, {"kind": "Status", "apiVersion": "v1", "status": outcome, "reason": reason, "code": code, "message": message})

    def asked(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = url.path.rstrip("/")
        if path in ("/version", "/api", "/apis", "/openapi/v2", "/openapi/v3"):
            return self.discovery(path)
        for version, resources in RESOURCES.items():
            root = root_of(version)
            if path == root:
                return self.resources(version, resources)
            match = PATH.fullmatch(path.removeprefix(root)) if path.startswith(root + "/") else None
            if match:
                for plural, kind, namespaced in resources:
                    if plural == match["plural"]:
                        # None: all of them.
                        namespace = match["namespace"] if namespaced else ""
                        if "watch" in query:
                            return self.watch(version, kind, namespace, query)
                        with self.server.changed:
                            return self.resource(version, kind, namespace, match["name"], match["part"], query, body)
        return self.status(404, "NotFound", path)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = asked

    def discovery(self, path: str):
        if path == "/version":
            return self.answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64"})
        if path == "/api":
            return self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/openapi/v2":
            # A document that describes nothing.
            return self.answer(200, b"", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        if path == "/openapi/v3":
            return self.answer(200, {"paths": {}})
        groups = [
            {"name": version.split("/")[0], "versions": [each], "preferredVersion": each}
            for version in RESOURCES if "/" in version
            for each in [{"groupVersion": version, "version": version.split("/")[1]}]
        ]
        return self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    def resources(self, version: str, resources):
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        listed = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": namespaced, "verbs": verbs}
            for plural, kind, namespaced in resources
        ]
        self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed})

    def resource(self, version, kind, namespace, name, part, query, body):
        objects = self.server.objects
        if self.command == "GET" and name is None:
            return self.collection(version, kind, namespace, query)
        key = (kind, namespace, name)
        now = objects.get(key)
        if part == "log":
            # The log of a pod is gone with the pod.
            return self.answer(200, b"the pod's log\n", "text/plain") if now else self.status(404, "NotFound", f"pods {name} not found")
        if self.command == "GET":
            return self.answer(200, now) if now else self.status(404, "NotFound", f"{kind} {name} not found")
        if self.command == "DELETE":
            if objects.pop(key, None) is None:
                return self.status(404, "NotFound")
            self.server.revision += 1
            self.server.tell("DELETED", now)
            return self.status(200, "")
        new = object_of(body)
        if self.command == "POST":
            key = (kind, namespace, new["metadata"]["name"])
            if key in objects:
                return self.status(409, "AlreadyExists", f"{kind} {key[2]} exists")
        if self.command == "PATCH":
            if now is None and "apply-patch" not in (self.headers.get("content-type") or ""):
                return self.status(404, "NotFound")
            new = merged(now or {}, new)
        new = self.completed(version, kind, namespace, key[2], new)
        if "dryRun" not in query:
            objects[key] = new
            self.server.tell("ADDED" if now is None else "MODIFIED", new)
        return self.answer(201 if self.command == "POST" else 200, new)

    def completed(self, version, kind, namespace, name, new):
        self.server.revision += 1
        meta = new.setdefault("metadata", {})
        meta.update(name=name, resourceVersion=str(self.server.revision))
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        if namespace:
            meta["namespace"] = namespace
        new.update(kind=kind, apiVersion=version)
        if kind == "Pod":
            new["status"] = {"phase": "Succeeded"}
        if kind == "Deployment":
            count = new.get("spec", {}).get("replicas", 1)
            new["status"] = {
                "observedGeneration": 1, "replicas": count, "readyReplicas": count, "updatedReplicas": count,
                "availableReplicas": count, "conditions": [{"type": "Available", "status": "True"}],
            }
        return new

    def chosen(self, one: dict, kind: str, namespace, query) -> bool:
        def wanted(parameter):
            return [each.split("=") for each in query.get(parameter, [""])[0].split(",") if "=" in each]

        meta = one["metadata"]
        labels = meta.get("labels") or {}
        return (
            one["kind"] == kind
            and (namespace is None or meta.get("namespace", "") == namespace)
            and all(labels.get(label) == rest[-1] for label, *rest in wanted("labelSelector"))
            and all(meta["name"] == rest[-1] for field, *rest in wanted("fieldSelector") if field == "metadata.name")
        )

    def collection(self, version, kind, namespace, query):
        found = [one for one in self.server.objects.values() if self.chosen(one, kind, namespace, query)]
        meta = {"resourceVersion": str(self.server.revision)}
        return self.answer(200, {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": found})

    def watch(self, version, kind, namespace, query):
        """Tells what changes, until who asked has gone."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        seen = int(query.get("resourceVersion", ["0"])[0] or 0)
        api = self.server
        if "sendInitialEvents" in query:
            with api.changed:
                seen = api.revision
                news = [("ADDED", one) for one in api.objects.values() if self.chosen(one, kind, namespace, query)]
            end = {"resourceVersion": str(seen), "annotations": {"k8s.io/initial-events-end": "true"}}
            self.events([*news, ("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": end})])
        while True:
            with api.changed:
                api.changed.wait_for(lambda: api.ends or api.revision > seen, timeout=1)
                if api.ends:
                    return
                news = [(what, one) for revision, what, one in api.changes if revision > seen and self.chosen(one, kind, namespace, query)]
                seen = api.revision
            try:
                self.events(news)
            except OSError:
                return

    def events(self, news):
        for what, one in news:
            self.wfile.write(json.dumps({"type": what, "object": one}).encode() + b"\n")
        self.wfile.flush()
