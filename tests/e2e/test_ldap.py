"""`auth.verifier=ldap`, with a real slapd."""

import json
import os
import subprocess

import pytest

from support.directory import BASE, GATEWAY, GATEWAY_PASSWORD
from support.gateway import JSON
from support.processes import clean_environment, wait_until

USERS = {"alice": "wonder:land-9", "bob +the (builder)*": "hammers-9", "carol": "sings-9"}
PEOPLE = f"ou=people,{BASE}"
COMMON = {"AUTH_VERIFIER": "ldap", "LIMITS_FAILURES_PER_USER": 0, "LIMITS_FAILURES_PER_ADDRESS": 0}
TEMPLATE = {"LDAP_USER_DN": "uid={user}," + PEOPLE}
SEARCH = {"LDAP_BASE_DN": BASE, "LDAP_FILTER": "(&(objectClass=inetOrgPerson)(uid={user}))", "LDAP_BIND_DN": GATEWAY,
          "LDAP_BIND_PASSWORD": GATEWAY_PASSWORD}


@pytest.fixture(scope="module")
def directory(setup):
    return setup.directory(USERS)


def gateway_for(setup, backend, directory, mode, **more):
    lookup, transport = mode.split(" by ")
    options = {"LDAP_CA_FILE": directory.pki.ca_file}
    match transport:
        case "ldaps":
            options["LDAP_URL"] = f"ldaps://localhost:{directory.tls_port}"
        case "starttls":
            options["LDAP_URL"] = f"ldap://localhost:{directory.port}"
        case "plain":
            options = {"LDAP_URL": f"ldap://127.0.0.1:{directory.port}", "LDAP_START_TLS": "false"}
    setup.secrets.add(GATEWAY_PASSWORD)
    return setup.gateway(backend.url, **COMMON, **options, **more, **(TEMPLATE if lookup == "template" else SEARCH))


@pytest.fixture(scope="module", params=["template by ldaps", "template by plain", "search by starttls", "search by ldaps"])
def gateway(setup, backend, directory, request):
    return gateway_for(setup, backend, directory, request.param)


@pytest.mark.parametrize(("user", "password"), USERS.items())
def test_the_password_of_the_entry_is_accepted(gateway, user, password, arrived):
    token = gateway.token(user, password)
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200
    assert [seen["user"] for seen in arrived()] == [user]


@pytest.mark.parametrize(("user", "password"), [
    ("alice", "hammers-9"),
    ("eve", "wonder:land-9"),
    ("*", "wonder:land-9"),
    ("a*", "wonder:land-9"),
    ("alice)(uid=*", "wonder:land-9"),
    ("alice)(|(uid=alice", "wonder:land-9"),
    ("\\61lice", "wonder:land-9"),
    ("eve+uid=alice", "wonder:land-9"),
    ("bob +the (builder)", "hammers-9"),
])
def test_other_credentials_are_rejected(gateway, user, password):
    rejected = gateway.get_token(user, password)
    assert (rejected.status_code, rejected.json()["reason"]) == (401, "credentials_wrong")


def test_a_name_with_a_comma_is_not_a_user_name(gateway):
    assert gateway.get_token("alice," + PEOPLE, "wonder:land-9").json()["reason"] == "bearer_user_name"


def test_an_empty_password_is_rejected_although_the_directory_accepts_the_bind(gateway):
    assert gateway.get_token("alice", "").status_code == 401


def test_a_search_compares_the_user_name_exactly(setup, backend, directory):
    gateway = gateway_for(setup, backend, directory, "search by starttls")
    assert gateway.get_token("Alice", "wonder:land-9").status_code == 401
    assert gateway.get_token("alice", "wonder:land-9").status_code == 200


@pytest.mark.parametrize("is_readable", [False, True])
def test_with_a_template_the_directory_spells_the_name(setup, backend, arrived, is_readable):
    """Directories ignore case and spaces. The backend, rules and limits must see one name."""
    directory = setup.directory(USERS, is_readable=is_readable)
    gateway = gateway_for(setup, backend, directory, "template by ldaps")
    token = gateway.token("alice", "wonder:land-9")
    assert gateway.token("ALICE", "wonder:land-9") == token
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200
    assert [seen["user"] for seen in arrived()] == ["alice"]
    assert gateway.get_token("bob  +the (builder)*", "hammers-9").json()["reason"] == "credentials_wrong"


def test_the_directorys_certificate_is_verified(setup, backend, directory):
    for url in (f"ldaps://localhost:{directory.tls_port}", f"ldap://localhost:{directory.port}"):
        gateway = setup.gateway(backend.url, **COMMON, **TEMPLATE, LDAP_URL=url)
        rejected = gateway.get_token("alice", "wonder:land-9")
        assert (rejected.status_code, rejected.json()["reason"]) == (503, "verifier_unavailable"), url


def test_a_wrong_bind_password_is_logged(setup, backend, directory):
    options = {**SEARCH, "LDAP_BIND_PASSWORD": "not-the-gateways-own"}
    gateway = setup.gateway(backend.url, **COMMON, **options, LDAP_URL=f"ldaps://localhost:{directory.tls_port}",
                            LDAP_CA_FILE=directory.pki.ca_file)
    assert gateway.get_token("alice", "wonder:land-9").json()["reason"] == "verifier_unavailable"
    wait_until("the log has the cause", lambda: "ldap.bind_dn cannot bind: result 49" in gateway.process.output)


def test_tokens_stay_valid_while_the_directory_is_down(setup, backend):
    directory = setup.directory(USERS)
    gateway = gateway_for(setup, backend, directory, "search by starttls")
    token = gateway.token("carol", "sings-9")
    assert directory.process.stop()
    rejected = gateway.get_token("carol", "sings-9")
    assert (rejected.status_code, rejected.json()["reason"]) == (503, "verifier_unavailable")
    assert rejected.headers["Retry-After"] == "5"
    assert gateway.send("GET", "timbr/api/get_ontologies/", token, headers=JSON).status_code == 200
    directory.start()
    directory.wait_ready()
    assert gateway.get_token("carol", "sings-9").status_code == 200


ANALYSTS, LEADS, NAMESAKES = (f"cn={name},{BASE}" for name in ("analysts", "leads", r"cn\=leads\,dc\=example\,dc\=com"))
GROUPS = {ANALYSTS: ["alice", "carol"], LEADS: ["carol"], NAMESAKES: ["alice"]}
BY_ATTRIBUTE, BY_SEARCH = {"LDAP_GROUPS_ATTRIBUTE": "memberof"}, {"LDAP_GROUPS_BASE_DN": BASE}
BY_GROUP = {
    "AUTHORIZATION_MODE": "enforce",
    "AUTHORIZATION_RULES": f"[{{groups: analysts, routes: api}}, {{groups: '{LEADS}', routes: openapi}}]",
    "LIMITS_RULES": "[{name: few, groups: leads, requests_per_second: 0.01, burst: 2}]",
}


def cli(gateway, *arguments):
    command = [os.environ["TIMBR_GATEWAY_BIN"], *arguments, "--listen-admin", f"127.0.0.1:{gateway.admin}"]
    return subprocess.run(command, env=clean_environment(), text=True, capture_output=True, check=True, timeout=30).stdout


def statuses(gateway, token):
    paths = [("GET", "timbr/api/get_ontologies/"), ("POST", "timbr/openapi/ontology/sales/query")]
    return [gateway.send(method, path, token).status_code for method, path in paths]


@pytest.mark.parametrize(("mode", "options"), [
    ("template by ldaps", BY_ATTRIBUTE), ("search by ldaps", BY_ATTRIBUTE), ("search by starttls", BY_SEARCH),
])
def test_rules_know_the_groups_of_a_token(setup, backend, mode, options):
    directory = setup.directory(USERS, is_readable=True, groups=GROUPS)
    gateway = gateway_for(setup, backend, directory, mode, **options, **BY_GROUP)
    alice, carol, bob = (gateway.token(user, USERS[user]) for user in ("alice", "carol", "bob +the (builder)*"))
    assert statuses(gateway, alice) == [200, 403], "a group that looks like the name of another one is not that one"
    assert statuses(gateway, carol) == [200, 200]
    assert statuses(gateway, carol) == [429, 429], "the limit of her group"
    assert statuses(gateway, bob) == [403, 403]
    listed = {token["user"]: token["groups"] for token in json.loads(cli(gateway, "tokens", "list", "--json"))}
    assert (listed["carol"], listed["bob +the (builder)*"]) == (sorted(["analysts", "leads", ANALYSTS, LEADS]), [])
    assert "carol (groups: analysts; cn=analysts," in cli(gateway, "tokens", "list")
    rejected = gateway.send("POST", "timbr/openapi/ontology/sales/query", alice, headers={**JSON, "x-request-id": "a-1"})
    assert rejected.json()["reason"] == "not_authorized" and "analysts" not in rejected.text
    assert "the groups of the caller: analysts; cn=analysts," in cli(gateway, "explain", "a-1")


def test_a_new_login_has_the_groups_of_today(setup, backend):
    directory = setup.directory(USERS, groups=GROUPS)
    gateway = gateway_for(setup, backend, directory, "search by ldaps", **BY_ATTRIBUTE, **BY_GROUP)
    before = gateway.token("carol", "sings-9")
    assert gateway.token("carol", "sings-9") == before
    assert directory.process.stop()
    directory.load({ANALYSTS: ["carol"]})
    directory.start()
    directory.wait_ready()
    after = gateway.token("carol", "sings-9")
    assert (statuses(gateway, before), statuses(gateway, after)) == ([200, 200], [200, 403])


@pytest.mark.parametrize(("mode", "options", "cause"), [
    ("template by ldaps", {**BY_SEARCH, "LDAP_GROUPS_BASE_DN": f"ou=none,{BASE}"}, "cannot read the groups: result 32"),
    ("search by ldaps", {**BY_SEARCH, "LDAP_GROUPS_BASE_DN": f"ou=none,{BASE}"}, "cannot read the groups: result 32"),
    ("search by ldaps", {**BY_SEARCH, "LDAP_GROUPS_FILTER": "(member={dn})(cn=*)"}, "ldap.groups_filter cannot be parsed"),
    ("search by ldaps", {**BY_SEARCH, "LDAP_GROUPS_FILTER": "(|(member={dn})(objectClass=*))"}, "too many groups"),
])
def test_a_login_fails_if_its_groups_are_not_known(setup, backend, mode, options, cause):
    many = {f"cn=group-{number}-{'x' * 60},{BASE}": ["carol"] for number in range(300)}
    directory = setup.directory(USERS, groups=many)
    gateway = gateway_for(setup, backend, directory, mode, **options)
    rejected = gateway.get_token("alice", USERS["alice"])
    assert (rejected.status_code, rejected.json()["reason"]) == (503, "verifier_unavailable")
    wait_until("the log has the cause", lambda: cause in gateway.process.output)
