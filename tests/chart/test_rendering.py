"""Each file of ci/ is rendered by both versions of helm, linted, and validated: with schemas, and with
the rules of `support.semantics`."""

import copy
import json
import re
import subprocess

import kubernetes_validate
import pytest
import yaml

from support.chart import CHART, FEATURES, HELMS, PLACE, REPOSITORY, gateway_config, of_kind, rendered, run, values_of
from support.semantics import problems

KUBERNETES = ["1.29", "1.31", "1.34", "1.37"]
CUSTOM = ("cert-manager.io/", "gateway.networking.k8s.io/", "monitoring.coreos.com/")


def is_custom(one: dict) -> bool:
    return one["apiVersion"].startswith(CUSTOM)


def problems_of_models(objects: list[dict]) -> list[str]:
    """What the models of the custom resources say about each object."""
    program = CHART.parents[1] / "tests" / "chart" / "support" / "crds.mjs"
    lines = "".join(json.dumps(one) + "\n" for one in objects)
    done = subprocess.run(
        ["node", program, PLACE / "models"], input=lines, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("feature", FEATURES)
def test_lint_has_nothing_to_say(feature, helm, counts):
    run(HELMS[helm], "lint", "--strict", "--quiet", CHART, "--values", values_of(feature))
    counts["lints"] += 1


@pytest.mark.parametrize("feature", FEATURES)
def test_both_versions_of_helm_render_the_same(feature, counts):
    # Kinds stand in another order.
    one, other = (sorted(rendered(feature, helm), key=lambda o: (o["kind"], o["metadata"]["name"])) for helm in HELMS)
    assert one == other
    counts["renderings compared"] += 1


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("feature", FEATURES)
def test_kubernetes_knows_every_field(feature, version, counts):
    for one in rendered(feature):
        if not is_custom(one):
            kubernetes_validate.validate(one, version, strict=True)
            counts["objects by Kubernetes' schemas"] += 1


def test_custom_resources_are_as_their_models_want_them(counts):
    objects = [(feature, one) for feature in FEATURES for one in rendered(feature) if is_custom(one)]
    kinds = {one["kind"] for _, one in objects}
    assert kinds == {
        "Certificate", "HTTPRoute", "TLSRoute", "BackendTLSPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule",
    }
    said = problems_of_models([one for _, one in objects])
    wrong = [(feature, one["kind"], what) for (feature, one), what in zip(objects, said, strict=True) if what]
    assert not wrong
    counts["custom resources by their models"] += len(objects)


def test_the_models_and_schemas_refuse_what_is_wrong():
    route = copy.deepcopy(of_kind(rendered("gateway-api"), "HTTPRoute")[0])
    route["spec"]["rules"][0]["backendRefs"][0]["port"] = "https"
    certificate = copy.deepcopy(of_kind(rendered("cert-manager"), "Certificate")[0])
    del certificate["spec"]["issuerRef"]
    assert all(problems_of_models([route, certificate]))
    deployment = copy.deepcopy(of_kind(rendered("minimal"), "Deployment")[0])
    deployment["spec"]["template"]["spec"]["terminationGrace"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.34", strict=True)


@pytest.mark.parametrize("feature", FEATURES)
def test_objects_fit_each_other(feature, counts):
    assert problems(rendered(feature)) == []
    counts["renderings by sense"] += 1


def deployment_of(objects):
    return of_kind(objects, "Deployment")[0]["spec"]


def gateway_of(objects):
    return deployment_of(objects)["template"]["spec"]["containers"][0]


def broken(change, feature="minimal"):
    objects = copy.deepcopy(rendered(feature))
    change(objects)
    return problems(objects)


@pytest.mark.parametrize(
    ("feature", "expected", "change"),
    [
        ("minimal", "does not fit its pods", lambda o: deployment_of(o)["selector"]["matchLabels"].update(a="b")),
        ("minimal", "changes with the version", lambda o: deployment_of(o)["selector"]["matchLabels"].update({"helm.sh/chart": "x"})),
        ("minimal", "Service chooses no pod", lambda o: of_kind(o, "Service")[0]["spec"]["selector"].update(a="b")),
        ("minimal", "no container has a port x", lambda o: of_kind(o, "Service")[0]["spec"]["ports"][0].update(targetPort="x")),
        ("minimal", "readinessProbe asks port", lambda o: gateway_of(o)["readinessProbe"]["httpGet"].update(port="https")),
        ("minimal", "is not restricted: capabilities", lambda o: gateway_of(o)["securityContext"].pop("capabilities")),
        ("minimal", "is not restricted: readOnlyRoot", lambda o: gateway_of(o)["securityContext"].pop("readOnlyRootFilesystem")),
        ("minimal", "limits of cpu is banana", lambda o: gateway_of(o)["resources"]["limits"].update(cpu="banana")),
        ("minimal", "is not a version", lambda o: gateway_of(o).update(image="a/b:latest")),
        ("minimal", "is not a version", lambda o: gateway_of(o).update(image="a:5000/b")),
        ("minimal", "a subPath", lambda o: gateway_of(o)["volumeMounts"][0].update(subPath="x")),
        ("minimal", "no volume x", lambda o: gateway_of(o)["volumeMounts"][0].update(name="x")),
        ("minimal", "is mounted nowhere", lambda o: gateway_of(o)["volumeMounts"].pop()),
        ("minimal", "is killed after 20 s", lambda o: deployment_of(o)["template"]["spec"].update(terminationGracePeriodSeconds=20)),
        ("minimal", "has no replicas", lambda o: deployment_of(o).pop("replicas")),
        ("minimal", "has a token", lambda o: deployment_of(o)["template"]["spec"].pop("automountServiceAccountToken")),
        ("minimal", "api_auth_salt in a ConfigMap", lambda o: of_kind(o, "ConfigMap")[0]["data"].update({"gateway.yaml": "api_auth_salt: x\nlisten: {admin: '0.0.0.0:9180', http: 'off', https: '0.0.0.0:8443'}"})),
        ("autoscaling", "has replicas, and an autoscaler", lambda o: deployment_of(o).update(replicas=2)),
        ("autoscaling", "scales x", lambda o: of_kind(o, "HorizontalPodAutoscaler")[0]["spec"]["scaleTargetRef"].update(name="x")),
        ("metrics", "chooses 0 Services", lambda o: of_kind(o, "ServiceMonitor")[0]["spec"]["selector"]["matchLabels"].update(a="b")),
        ("metrics", "no port x", lambda o: of_kind(o, "ServiceMonitor")[0]["spec"]["endpoints"][0].update(port="x")),
        ("ingress", "has no port x", lambda o: of_kind(o, "Ingress")[0]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"].update(name="x")),
        ("gateway-api", "has no port 1", lambda o: of_kind(o, "HTTPRoute")[0]["spec"]["rules"][0]["backendRefs"][0].update(port=1)),
        ("network-policy", "no container has a port x", lambda o: of_kind(o, "NetworkPolicy")[0]["spec"]["ingress"][0]["ports"][0].update(port="x")),
        ("file-store", "storage is much", lambda o: of_kind(o, "PersistentVolumeClaim")[0]["spec"]["resources"]["requests"].update(storage="much")),
    ],
)
def test_what_does_not_fit_is_found(feature, expected, change):
    found = broken(change, feature)
    assert any(expected in problem for problem in found), found


def test_pods_are_made_anew_for_what_a_running_gateway_cannot_take_over():
    def checksum(feature, *settings):
        return deployment_of(rendered(feature, "helm 3", *settings))["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum("minimal") != checksum("minimal", "config.log.level=debug")
    assert checksum("minimal") == checksum("minimal", "service.type=NodePort")
    # `extra` leaves changes of the configuration to the gateway.
    assert checksum("extra") == checksum("extra", "config.log.level=debug")
    for held in ("listeners.https.port=9443", "config.workers=3", "config.log.format=text", "config.store.kind=redis,config.store.urls=redis://a"):
        assert checksum("extra") != checksum("extra", held), held


def test_selectors_stay_the_same_from_version_to_version_and_for_all_values():
    selectors = {
        feature: deployment_of(rendered(feature))["selector"]["matchLabels"] for feature in FEATURES if feature != "sidecar"
    }
    usual = {"app.kubernetes.io/name": "timbr-gateway", "app.kubernetes.io/instance": "release"}
    assert all(selector == usual for selector in selectors.values()), selectors


def test_nothing_is_random():
    from support.chart import rendered_text

    for feature in FEATURES:
        first = rendered_text(feature)
        rendered_text.cache_clear()
        assert rendered_text(feature) == first


def test_a_budget_is_there_for_several_replicas_only():
    assert of_kind(rendered("minimal"), "PodDisruptionBudget") == []
    budget = of_kind(rendered("redis"), "PodDisruptionBudget")[0]["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_a_policy_for_clients_lets_the_test_by_the_service_through():
    settings = ("networkPolicy.enabled=true", "networkPolicy.clients[0].podSelector.matchLabels.app=client")
    objects = rendered("test-by-service", "helm 3", *settings)
    [pod] = [one for one in of_kind(objects, "Pod")]
    clients = of_kind(objects, "NetworkPolicy")[0]["spec"]["ingress"][0]["from"]
    admitted = [peer["podSelector"]["matchLabels"] for peer in clients]
    assert {"app": "client"} in admitted
    assert any(labels.items() <= pod["metadata"]["labels"].items() for labels in admitted), admitted
    without = rendered("test-by-service", "helm 3", *settings, "tests.service.enabled=false")
    assert len(of_kind(without, "NetworkPolicy")[0]["spec"]["ingress"][0]["from"]) == 1


def test_the_file_of_tokens_is_never_open_twice():
    objects = rendered("file-store")
    assert deployment_of(objects)["strategy"] == {"type": "Recreate"}
    claims = [name for name, volumes in (
        (one["metadata"]["name"], (one["spec"].get("template", one)["spec"]).get("volumes", []))
        for one in objects if one["kind"] in ("Deployment", "Pod")
    ) if any("persistentVolumeClaim" in volume for volume in volumes)]
    assert claims == ["release-timbr-gateway"]


def test_the_grace_period_follows_the_drain():
    def grace(feature, *settings):
        return deployment_of(rendered(feature, "helm 3", *settings))["template"]["spec"]["terminationGracePeriodSeconds"]

    assert grace("minimal") == 5 + 30 + 10
    assert grace("minimal", "config.drain.timeout=1500ms") == 7 + 10
    assert grace("minimal", "config.drain.timeout=0.5min 1s", "config.drain.delay=0s") == 31 + 10
    assert grace("minimal", "terminationGracePeriodSeconds=1000000") == 1000000
    assert grace("extra") == 10 + 5400 + 10


def test_the_rules_and_the_dashboard_know_the_job_that_the_monitors_make():
    rules = of_kind(rendered("metrics"), "PrometheusRule")[0]["spec"]["groups"]
    written = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert rules == written["groups"]
    jobs = set(re.findall(r'job="([^"]*)"', json.dumps(rules).replace('\\"', '"')))
    for feature, kind, endpoints in (("metrics", "ServiceMonitor", "endpoints"), ("sidecar", "PodMonitor", "podMetricsEndpoints")):
        [endpoint] = of_kind(rendered(feature), kind)[0]["spec"][endpoints]
        assert {each["replacement"] for each in endpoint["relabelings"] if each["targetLabel"] == "job"} == jobs
    [dashboard] = [one for one in of_kind(rendered("metrics"), "ConfigMap") if "timbr-gateway.json" in one["data"]]
    written = json.loads((REPOSITORY / "deploy" / "grafana" / "timbr-gateway.json").read_text())
    assert json.loads(dashboard["data"]["timbr-gateway.json"]) == written


def test_large_numbers_stay_numbers():
    objects = rendered("minimal", "helm 3", "config.limits.requests_per_connection=2000000")
    assert "requests_per_connection: 2000000\n" in gateway_config(objects)


def test_every_secret_is_a_folder_of_its_own_with_only_the_key_that_is_needed():
    pod = deployment_of(rendered("impersonate"))["template"]["spec"]
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets["users-file"] == {
        "secretName": "timbr-users", "defaultMode": 0o440, "items": [{"key": "htpasswd", "path": "users-file"}],
    }
    assert set(secrets) == {"salt", "service-key", "users-file", "keys-file", "upstream-client-certificate", "upstream-ca"}
    places = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    folders = [f"/etc/timbr-gateway/{name}" for name in ["config", *(v["name"] for v in pod["volumes"][1:-1])]]
    assert places == [*folders, "/run/timbr-gateway"] and "emptyDir" in pod["volumes"][-1]


def test_the_page_on_modes_names_a_file_of_values_for_each():
    rows = re.findall(r"^\| \d\. .*$", (REPOSITORY / "docs/choose.md").read_text(), re.M)
    credentials = []
    for row in rows:
        _, verifiers, credential, files = row.strip("| ").split(" | ")
        for file in re.findall(r"ci/(\S+)-values.yaml", files):
            config = yaml.safe_load(gateway_config(rendered(file)))
            assert config["upstream"].get("credential", "forward") in credential, row
            assert (config.get("auth") or {}).get("verifier", "salt-holder") in verifiers, row
        credentials.append(credential.strip("`"))
    assert credentials == ["forward", "impersonate", "delegate", "platform"]
