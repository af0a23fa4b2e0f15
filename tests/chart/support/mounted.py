"""A pod's files as the kubelet would lay them out, below a folder, with contents that the gateway can use."""

import functools
import tempfile
from pathlib import Path

from support.chart import GATEWAY, gateway_config, of_kind, run

# Of `alice`, made with bcrypt at its lowest cost.
USERS = "alice:$2b$04$JpWTkhZJ0iKRzXnYcS6EAeRWx/jZ1uVIlbWHLfpqLBqjDHYqCjCYi\n"
KEYS = "alice:" + "0" * 64 + "\n"


def _issued(folder: str, name: str, *options: str) -> tuple[str, str]:
    """A certificate of that name, valid for three months, and its key; both are kept in the folder too."""
    key, certificate = f"{folder}/{name}.key", f"{folder}/{name}.crt"
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "90",
        "-subj", f"/CN={name}", "-keyout", key, "-out", certificate, *options,
    )
    return Path(certificate).read_text(), Path(key).read_text()


# Where `helm test` finds the release of the tests.
SERVICE = "release-timbr-gateway.timbr.svc"


@functools.cache
def pki() -> tuple[str, str, str]:
    """An authority's certificate, and the certificate of the gateway that it issued, with its key."""
    with tempfile.TemporaryDirectory() as folder:
        authority, _ = _issued(folder, "authority")
        certificate, key = _issued(
            folder, "gateway", "-CA", f"{folder}/authority.crt", "-CAkey", f"{folder}/authority.key",
            "-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName=DNS:gateway,DNS:{SERVICE}",
        )
        return authority, certificate, key


@functools.cache
def salt() -> str:
    return run(GATEWAY, "salt").stdout


def content_of(path: str) -> str:
    """What stands in a file of that name."""
    authority, certificate, key = pki()
    known = {
        "salt": salt(), "store-key": run(GATEWAY, "store", "key").stdout, "users-file": USERS, "keys-file": KEYS, "tls.crt": certificate, "tls.key": key, "ca.crt": authority,
    }
    return known.get(path, "a-secret\n")


def lay_out(objects: list[dict], pod: dict, container: dict, root: Path, is_moved: bool) -> None:
    """Makes what the container mounts, at the same places below `root`. If it is moved, the gateway finds there what it
    finds below / in the pod."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    configs = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    for mount in container["volumeMounts"]:
        folder = root / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        volume = volumes[mount["name"]]
        source = volume.get("secret") or volume.get("configMap") or {}
        if "csi" in volume:
            (folder / "salt").write_text(salt())
        elif "items" in source:
            for item in source["items"]:
                (folder / item["path"]).write_text(content_of(item["path"]))
        elif "emptyDir" in volume:
            folder.chmod(0o777)  # as the kubelet does
        elif "configMap" in volume:
            for name, text in configs[source["name"]].items():
                (folder / name).write_text(moved(text, root) if is_moved else text)


def moved(text: str, root: Path) -> str:
    for place in ("/etc/timbr-gateway", "/var/lib/timbr-gateway", "/mnt/secrets"):
        text = text.replace(place, f"{root}{place}")
    return text


def check(objects: list[dict], pod: dict, container: dict, root: Path):
    """Has the gateway read its configuration, with the container's own arguments and variables."""
    lay_out(objects, pod, container, root, is_moved=True)
    command, *arguments = container["args"]
    assert command == "serve" and gateway_config(objects)
    environment = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
    return run(
        GATEWAY, "config", "check", *(moved(argument, root) for argument in arguments), env=environment, check=False,
    )
