"""What cannot work is not rendered, and helm says what to do instead."""

import copy

import pytest
import yaml

from support.chart import HELMS, refusal, run, CHART

GOOD = {
    "config": {"upstream": {"url": "http://timbr-backend:8000"}},
    "secrets": {"salt": {"existingSecret": "salt"}},
}
REDIS = {"kind": "redis", "urls": "redis://redis:6379"}


def changed(*changes: tuple[str, object]) -> dict:
    values = copy.deepcopy(GOOD)
    for path, value in changes:
        at = values
        *groups, last = path.split(".")
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return values


SENTENCES = [
    ("no salt", [("secrets", {})], "secrets.salt.existingSecret is missing"),
    ("no backend", [("config", {})], "config.upstream.url is missing"),
    ("replicas in memory", [("replicaCount", 2)], "config.store.kind is memory"),
    ("replicas of a file", [("replicaCount", 2), ("config.store.kind", "file"), ("persistence.enabled", True)], "config.store.kind is file"),
    ("autoscaling in memory", [("autoscaling.enabled", True)], "config.store.kind is memory"),
    ("autoscaling and replicas", [("autoscaling.enabled", True), ("replicaCount", 2), ("config.store", REDIS)], "exclude each other"),
    ("autoscaling upside down", [("autoscaling", {"enabled": True, "minReplicas": 9, "maxReplicas": 3}), ("config.store", REDIS)], "minReplicas is greater"),
    ("autoscaling without requests", [("autoscaling.enabled", True), ("config.store", REDIS), ("resources.requests", {"cpu": None})], "requires resources.requests.cpu"),
    ("autoscaling by nothing", [("autoscaling", {"enabled": True, "targetCPUUtilizationPercentage": None}), ("config.store", REDIS)], "has no metric"),
    ("two budgets", [("podDisruptionBudget", {"minAvailable": 1}), ("config.store", REDIS), ("replicaCount", 2)], "accepts either minAvailable or maxUnavailable"),
    ("a budget that blocks", [("podDisruptionBudget", {"minAvailable": 2, "maxUnavailable": None}), ("config.store", REDIS), ("replicaCount", 2)], "no node could ever be drained"),
    ("too little grace", [("terminationGracePeriodSeconds", 30)], "set it to 40 or more"),
    ("a drain of weeks", [("config.drain.timeout", "2 weeks")], "must be durations in days, hours"),
    ("impersonate without a key", [("config.upstream.credential", "impersonate"), ("config.auth.trust_salt_holder", True)], "secrets.serviceKey.existingSecret"),
    ("impersonate by salt holders", [("config.upstream.credential", "impersonate"), ("secrets.serviceKey.existingSecret", "key")], "config.auth.trust_salt_holder"),
    ("a key for nothing", [("secrets.serviceKey.existingSecret", "key")], "has no effect with config.upstream.credential forward"),
    ("platform without its verifier", [("config.upstream.credential", "platform")], "requires config.auth.verifier platform"),
    ("show-token without a login at the backend", [("config.upstream.credential", "show-token")], "or config.auth.jwt_issuers"),
    ("users-file without users", [("config.auth.verifier", "users-file")], "secrets.usersFile.existingSecret"),
    ("ldap without a directory", [("config.auth.verifier", "ldap")], "config.ldap.url is missing"),
    ("redis without an address", [("config.store.kind", "redis")], "config.store.urls is missing"),
    ("a password without redis", [("secrets.redisPassword.existingSecret", "redis")], "have no effect without config.store.kind redis"),
    ("a file without a volume", [("config.store.kind", "file")], "set persistence.enabled"),
    ("a volume without a file", [("persistence.enabled", True)], "persistence has no effect"),
    ("a salt in config", [("config.api_auth_salt", "x")], "config.api_auth_salt is a secret"),
    ("a service key in config", [("config.upstream.api_key", "x")], "config.upstream.api_key is a secret"),
    ("users in redis without a key", [("config.auth.verifier", "users-file"), ("secrets.usersFile.existingSecret", "users"), ("config.store", REDIS)], "secrets.storeKey.existingSecret"),
    ("a store key in config", [("config.store", {**REDIS, "key": "x"})], "config.store.key is a secret"),
    ("a password in config", [("config.store", {**REDIS, "password": "x"})], "config.store.password is a secret"),
    ("a Sentinel's password in config", [("config.store", {**REDIS, "sentinel_password": "x"})], "config.store.sentinel_password is a secret"),
    ("a directory's password in config", [("config.ldap.bind_password", "x")], "config.ldap.bind_password is a secret"),
    ("a token of operators in config", [("config.listen", {"admin_commands": "token", "admin_token": "x"})], "config.listen.admin_token is a secret"),
    ("a password in an address", [("config.store", {"kind": "redis", "urls": "redis://a:b@redis:6379"})], "contains a user name or password"),
    ("an address that the chart sets", [("config.listen.https", "0.0.0.0:1")], "config.listen.https is set by the chart"),
    ("a file that the chart mounts", [("config.api_auth_salt_file", "/x")], "config.api_auth_salt_file is set by the chart"),
    ("no listener", [("listeners.https.enabled", False)], "nothing would be served"),
    ("one port twice", [("listeners.admin.port", 8443)], "the same port"),
    ("a certificate without https", [("listeners", {"https": {"enabled": False}, "http": {"enabled": True}}), ("tls.existingSecret", "tls")], "have no effect without listeners.https.enabled"),
    ("two certificates", [("tls.existingSecret", "tls"), ("tls.certManager", {"enabled": True, "issuerRef": {"name": "a"}, "dnsNames": ["b"]})], "exclude each other"),
    ("no issuer", [("tls.certManager", {"enabled": True, "dnsNames": ["b"]})], "issuerRef.name is missing"),
    ("no names", [("tls.certManager", {"enabled": True, "issuerRef": {"name": "a"}})], "dnsNames is empty"),
    ("certificates of clients without an authority", [("config.tls", {"client_auth": "required"})], "name its Secret in authorities.clients.existingSecret"),
    ("an authority of clients for nothing", [("authorities.clients.existingSecret", "ca")], "has no effect without config.tls.client_auth"),
    ("an authority twice", [("authorities.ldap", {"existingSecret": "a", "existingConfigMap": "b"})], "has a Secret and a ConfigMap"),
    ("an Ingress to nowhere", [("ingress.enabled", True)], "ingress.hosts is empty"),
    ("hosts as other charts write them", [("ingress", {"enabled": True, "hosts": [{"host": "t.example.com", "paths": ["/"]}]})], "write hosts: [t.example.com], and one path"),
    ("a host that is a number", [("ingress", {"enabled": True, "hosts": [7]})], "contains 7, which is not a host name"),
    ("memory without a unit", [("resources.limits.memory", 512)], "resources.limits.memory is 512, too little"),
    ("memory in thousandths of a byte", [("resources.limits.memory", "512m")], "set 32Mi or more, such as 512Mi"),
    ("the tag that moves", [("image.tag", "latest")], "image.tag is latest"),
    ("a registry in the repository", [("image.repository", "registry.example.com/timbr-gateway")], "set image.registry"),
    ("a tag in the repository", [("image.repository", "timbr/timbr-gateway:0.1.0")], "set image.tag"),
    ("a route without a Gateway", [("httpRoute.enabled", True), ("listeners.http.enabled", True)], "httpRoute.parentRefs is empty"),
    ("a route from plain to TLS", [("httpRoute", {"enabled": True, "parentRefs": [{"name": "g"}]})], "set httpRoute.backendTLS.enabled"),
    ("a backend without a name", [("httpRoute", {"enabled": True, "parentRefs": [{"name": "g"}], "backendTLS": {"enabled": True}})], "httpRoute.backendTLS.hostname is missing"),
    ("a TLS route for all", [("tlsRoute", {"enabled": True, "parentRefs": [{"name": "g"}]})], "tlsRoute.hostnames is empty"),
    ("a sidecar far away", [("mode", "sidecar")], "must be a loopback address"),
    ("a sidecar with a backend far away", [("mode", "sidecar"), ("config.upstream", {"urls": ["http://127.0.0.1:1", "http://timbr-backend:8000"]})], "must be a loopback address"),
    ("a sidecar that scales", [("mode", "sidecar"), ("config.upstream.url", "http://127.0.0.1:1"), ("ingress", {"enabled": True, "hosts": ["a"]})], "ingress.enabled has no effect with mode sidecar"),
    ("a sidecar whose pods nobody knows", [("mode", "sidecar"), ("config.upstream.url", "http://127.0.0.1:1"), ("metrics.serviceMonitor.enabled", True)], "podSelector is empty"),
    ("scrapes that a policy blocks", [("networkPolicy.enabled", True), ("metrics.serviceMonitor.enabled", True)], "add Prometheus to networkPolicy.monitoring"),
    ("a test of nobody", [("tests.service", {"enabled": True})], "requires a user for the login"),
    ("a test without a password", [("tests.user", "alice")], "tests.password.existingSecret"),
]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("changes", "sentence"), [pytest.param(*case[1:], id=case[0]) for case in SENTENCES])
def test_what_cannot_work_is_refused_with_a_sentence(changes, sentence, helm, counts):
    said = refusal(changed(*changes), helm)
    assert sentence in said and "these values cannot work" in said, said
    counts["refusals"] += 1


def test_all_that_is_wrong_is_told_at_once():
    said = refusal({"replicaCount": 2, "terminationGracePeriodSeconds": 3})
    for sentence in ("salt.existingSecret", "upstream.url", "store.kind is memory", "would abort requests"):
        assert sentence in said, said


def test_a_secret_that_was_put_into_config_is_not_repeated():
    assert "sekrit" not in refusal(changed(("config.api_auth_salt", "sekrit"), ("config.store", {"kind": "redis", "urls": "redis://a:sekrit@b"})))


UNKNOWN = [
    ("an unknown value", ("replicas", 2), "replicas"),
    ("an unknown value of a group", ("service.port", 443), "port"),
    ("an unknown value of a secret", ("secrets.salt.secretName", "x"), "secretName"),
    ("a number for a name", ("secrets.salt.existingSecret", 7), "existingSecret"),
    ("a kind of Service", ("service.type", "Ingress"), "type"),
    ("half a digest", ("image.digest", "sha256:abc"), "digest"),
    ("a privileged port", ("listeners.https.port", 443), "port"),
    ("text for a number", ("replicaCount", "two"), "replicaCount"),
    ("a quantity of nothing", ("resources.limits.memory", "banana"), "memory"),
    ("an unknown mode", ("mode", "both"), "mode"),
    ("a path that is none", ("ingress.path", "timbr"), "path"),
    ("an option that the gateway does not know", ("config.upstream.uri", "http://a"), "uri"),
    ("a span without its unit", ("config.drain.timeout", "30"), "timeout"),
    ("a verifier that is none", ("config.auth", {"verifier": "magic"}), "verifier"),
    ("an unknown field of a probe", ("readinessProbe.path", "/x"), "path"),
]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(("change", "named"), [pytest.param(*case[1:], id=case[0]) for case in UNKNOWN])
def test_what_the_schema_does_not_know_is_refused(change, named, helm, counts):
    said = refusal(changed(change), helm)
    assert "schema" in said and named in said and "these values cannot work" not in said, said
    counts["refusals"] += 1


def test_the_backend_of_a_sidecar_may_listen_on_a_unix_socket():
    values = changed(("mode", "sidecar"), ("config.upstream.url", "unix:/run/timbr/api.sock"))
    run(HELMS["helm 4"], "template", "release", CHART, "--values", "-", input=yaml.safe_dump(values))


@pytest.mark.parametrize("helm", HELMS)
def test_the_values_that_the_cases_begin_with_are_good(helm):
    run(HELMS[helm], "template", "release", CHART, "--values", "-", input=yaml.safe_dump(GOOD))


# A heading whose lines are all comments is null, for which helm removes the default.
@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("key", [key for key, value in yaml.safe_load((CHART / "values.yaml").read_text()).items() if isinstance(value, (dict, list))])
def test_an_empty_heading_works_or_is_refused_by_name(key, helm):
    values = yaml.safe_dump({**GOOD, key: None})
    done = run(HELMS[helm], "template", "release", CHART, "--values", "-", input=values, check=False)
    assert done.returncode == 0 or "schema" in done.stderr and key in done.stderr, done.stderr
