"""`timbr-gateway config schema` accepts what the gateway accepts; checked with a public validator."""

import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from support.processes import clean_environment

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Yaml(yaml.SafeLoader):
    """YAML 1.2 as the gateway reads it: `off` and `yes` are text, and so are dates and 1:30."""


Yaml.yaml_implicit_resolvers = {}
for kind, pattern, first in [
    ("null", r"^(?:~|null|Null|NULL|)$", list("~nN") + [""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
]:
    Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), first)


def gateway(*arguments, **variables):
    return subprocess.run([os.environ["TIMBR_GATEWAY_BIN"], *arguments], env=clean_environment(**variables), text=True,
                          capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def schema():
    return json.loads(gateway("config", "schema").stdout)


@pytest.fixture(scope="module")
def errors(schema):
    """The schema's errors for a YAML text, as (key, message)."""
    validator = Draft202012Validator(schema)

    def errors(text):
        return [(".".join(map(str, error.absolute_path)), error.message)
                for error in validator.iter_errors(yaml.load(text, Yaml) or {})]

    return errors


@pytest.fixture(scope="module")
def gateway_says(tmp_path_factory):
    """The gateway's errors for a file, or None. The salt and the upstream URL are added unless the file has them."""
    folder = tmp_path_factory.mktemp("schema")
    for name, text in [("salt", gateway("salt").stdout), ("service-key", "tk_service"), ("ldap-password", "secret"),
                       ("redis-password", "secret"), ("hmac", "x" * 40),
                       ("store-key", gateway("store", "key").stdout)]:
        (folder / name).write_text(text)

    def say(text, command="print"):
        text = re.sub(r"/run/secrets|/etc/timbr-gateway", str(folder), text)
        (folder / "gateway.yaml").write_text(text)
        tree = yaml.load(text, Yaml) or {}
        variables = {}
        if not {"api_auth_salt", "api_auth_salt_file"} & set(tree):
            variables["API_AUTH_SALT_FILE"] = str(folder / "salt")
        if not {"url", "urls"} & set(tree.get("upstream") or {}):
            variables["TIMBR_GATEWAY_UPSTREAM_URL"] = "http://127.0.0.1:8000"
        output = gateway("config", command, "--config", str(folder / "gateway.yaml"), **variables)
        assert output.returncode in (0, 1), output
        return None if output.returncode == 0 else output.stderr

    return say


def samples():
    """Every configuration file in the documentation and the fuzz seeds."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S)):
            if page.name == "kubernetes.md" or re.search(r"^(volume\w*|apiVersion|spec|services|kind|containers|extraEnv|initContainers|groups|scrape_configs):", text, re.M):
                continue  # Kubernetes', the chart's, compose's or Prometheus'
            yield pytest.param(text, id=f"{page.relative_to(ROOT)}[{number}]")
    for path in sorted((ROOT / "fuzz/seeds/config").iterdir()):
        yield pytest.param(path.read_text(), id=str(path.relative_to(ROOT)))


def deployed():
    """Configuration files of deployments. They refer to files that do not exist here."""
    for path in sorted((ROOT / "deploy").glob("**/gateway*.yaml")):
        if "apiVersion:" not in path.read_text():
            yield pytest.param(path.read_text(), id=str(path.relative_to(ROOT)))


GOOD = [
    "",
    "upstream: ~\nroutes: ~\ntokens: {ttl: ~}",
    "listen: {http: off, https: '[::]:8443', admin: '127.0.0.1:0'}",
    "workers: 3\nlimits: {headers: '50', failures_per_user: 0, failures_per_address: '0', body: 10 MiB}",
    "tokens: {ttl: 1h 30m, idle_ttl: off}\ntimeouts: {body: 1500ms, connection_age: 1.5h}\ndrain: {delay: 0s}",
    "trusted_proxies: [10.0.0.0/8, 'fd00::/8', 192.168.1.1]",
    "trusted_proxies: 10.0.0.0/8, fd00::1",
    "trusted_proxies: ['unix:', 10.0.0.0/8]\nlisten: {http_socket: /run/x, http_socket_mode: '0666'}",
    "upstream: {urls: ['unix:/run/a.sock', 'http://b:1', 'unix:///run/c']}",
    "log: {access: 'false', level: debug}\ncore_dumps: false",
    "routes: [{name: hive, enabled: true}, {name: api, credentials: [api_key], max_body: 1GiB, client_certificate: optional}]",
    "auth: {jwt_issuers: [{issuer: i, audiences: a, jwks_url: 'https://idp/keys', ca_file: c, algorithms: RS256, tenants: [t]}]}",
    "auth: {jwt_issuers: [{issuer: i, audiences: [a, b], secret_file: /run/secrets/hmac, algorithms: [HS256, HS512]}]}",
    "auth: {jwt_issuers: '[{issuer: i, audiences: a, jwks_file: k}]'}",
    "auth: {jwt_issuers: [{issuer: i, audiences: a, jwks_file: k, jwks_url: ~, tenants: ~}]}",
    "auth: {trust_salt_holder: true}\nimpersonation: {rules: [{users: bi, act_as: ['*']}], own_keys: deny}",
    "authorization: {mode: enforce, rules: [{users: '*', methods: [GET, HEAD]}, {unknown_users: true, routes: api}]}",
    "tls: {certificates: [{cert_file: a.crt, key_file: a.key}]}",
    "store: {kind: redis, urls: 'redis://a:1,redis://b', mode: cluster, database: 0}",
]

BAD = [
    "upstream: http://127.0.0.1",
    "upstream: {url: 127.0.0.1:8000}",
    "upstream: {url: 'http://x/path'}",
    "upstream: {url: 'unix:run/a.sock'}",
    "upstream: {url: 'http+unix:/run/a.sock'}",
    "listen: {http_socket: /run/x, http_socket_mode: '0777'}",
    "upstream: {urll: 'http://x'}",
    "nothing: 1",
    "listen: {http: 8080}",
    "listen: {http: '8080'}",
    "listen: {http: false}",
    "workers: 0",
    "workers: many",
    "limits: {body: 100}",
    "limits: {body: 100MB}",
    "limits: {failures_per_user: off}",
    "tokens: {ttl: 30}",
    "tokens: {ttl: 30x}",
    "tokens: {ttl: off}",
    "tokens: {foreign: perhaps}",
    "log: {access: 1}",
    "core_dumps: yes",
    "trusted_proxies: [proxy.internal]",
    "api_auth_salt: 12",
    "api_auth_salt: x\napi_auth_salt_file: y",
    "routes: {name: api}",
    "routes: [{name: A}]",
    "routes: [{name: x}]",
    "routes: [{prefix: /x/, content_types: [text/csv]}]",
    "routes: [{name: x, prefix: x/, content_types: [text/csv]}]",
    "routes: [{name: api, content_types: []}]",
    "routes: [{name: api, methods: GET}]",
    "routes: [{name: api, max_body: 10}]",
    "routes: [{name: api, enabled: ~}]",
    "routes: [{name: api, colour: red}]",
    "auth: {jwt_issuers: {issuer: i}}",
    "auth: {jwt_issuers: [{issuer: i, audiences: a}]}",
    "auth: {jwt_issuers: [{issuer: i, jwks_file: k}]}",
    "auth: {jwt_issuers: [{issuer: i, audiences: [], jwks_file: k}]}",
    "auth: {jwt_issuers: [{issuer: i, audiences: a, jwks_file: k, secret_file: s}]}",
    "auth: {jwt_issuers: [{issuer: i, audiences: a, jwks_file: k, algorithms: none}]}",
    "auth: {jwt_issuers: [{issuer: i, audiences: a, jwks_file: k, audience: b}]}",
    "impersonation: {rules: [{users: bi}]}",
    "impersonation: {rules: [bi]}",
    "authorization: {mode: enforce, rules: [{users: a, methods: [FETCH]}]}",
    "authorization: {mode: enforce, rules: [{users: a, unknown_users: 'yes'}]}",
    "tls: {certificates: [{cert_file: a}]}",
]


def test_the_schema_is_valid_in_the_current_and_an_older_dialect(schema):
    Draft202012Validator.check_schema(schema)
    Draft7Validator.check_schema(schema)
    assert '"$ref"' not in json.dumps(schema), "so that other schemas can embed it"


@pytest.mark.parametrize("text", [*samples(), *GOOD])
def test_the_schema_accepts_what_the_gateway_accepts(text, errors, gateway_says):
    assert gateway_says(text) is None
    assert errors(text) == []


@pytest.mark.parametrize("text", [*deployed()])
def test_deployed_configurations_are_valid(text, errors):
    assert errors(text) == []


@pytest.mark.parametrize("text", BAD)
def test_both_reject_an_invalid_configuration(text, errors, gateway_says):
    assert gateway_says(text, "check") is not None
    assert errors(text) != []


def leaves(schema, at=""):
    """The key of every option."""
    for name, below in schema["properties"].items():
        key = f"{at}{name}"
        if "properties" in below:
            yield from leaves(below, f"{key}.")
        else:
            yield key


def nested(keys, value):
    """A file in which each of these keys has the value `value`."""
    tree = {}
    for key in keys:
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = value
    return json.dumps(tree)


@pytest.mark.parametrize("value", [0, 1, -1, 1.5, True, "", "x", "0", "+7", "007", "off", "30s", " 1h  2m ", "10MiB", "5 B", "127.0.0.1:1",
                                   "[::1]:1", "10.0.0.0/8,", "http://h", "true", [], ["x"], [1], ["10.0.0.0/8"], {}, {"x": 1}])
def test_the_schema_rejects_only_values_that_the_gateway_rejects(value, schema, errors, gateway_says):
    everything = set(leaves(schema))
    # The two exclude each other; if both are set, the gateway reports only that.
    for other in ("upstream.url", "upstream.urls"):
        keys = [key for key in everything - {other} if key.removesuffix("_file") == key or key.removesuffix("_file") not in everything]
        text = nested(keys, value)
        by_schema = {re.sub(r"[.\[]\d+.*", "", key) for key, _ in errors(text)}
        message = gateway_says(text)
        assert message is not None, "these values cannot all be valid"
        by_gateway = {re.sub(r"\[\d+\].*", "", line.strip().split(": ")[0]) for line in message.splitlines()}
        assert by_schema - {""} <= by_gateway, by_schema - by_gateway
        if value in ({}, {"x": 1}):
            assert by_schema == set(keys), "no option accepts an object"
