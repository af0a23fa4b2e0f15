"""`timbr-gateway doctor`: reports for a working setup and for broken ones."""

import json
import os
import subprocess

import pytest

from support.processes import clean_environment, free_port
from support.directory import BASE, GATEWAY, GATEWAY_PASSWORD
from backend.keys import SERVICE_KEY


@pytest.fixture
def doctor(setup):
    def doctor(upstream, *arguments, password=None, **options):
        variables = {f"TIMBR_GATEWAY_{name}": str(value) for name, value in options.items()}
        environment = clean_environment(API_AUTH_SALT=setup.salt, TIMBR_GATEWAY_UPSTREAM_URL=upstream, **variables)
        command = [os.environ["TIMBR_GATEWAY_BIN"], "doctor", *arguments]
        return subprocess.run(command, env=environment, input=password or "", text=True, capture_output=True, timeout=100)

    return doctor


def failures(output):
    report = json.loads(output.stdout)
    failed = [step for step in report["steps"] if step["outcome"] == "failed"]
    assert (output.returncode, report["healthy"]) == ((1, False) if failed else (0, True)), output
    return {step["step"]: step["fix"] for step in failed}


def test_all_steps_run_on_a_working_setup(doctor, backend, arrived):
    output = doctor(backend.url)
    assert output.returncode == 0, output
    steps = [line.split("  ")[0] for line in output.stdout.splitlines()]
    assert "FAILED" not in output.stdout and "async result" in output.stdout and steps[-1].startswith("All checks passed.")
    received = [(seen["path"].partition("/get-async-results/")[0], dict(seen["fields"])["Content-Type"]) for seen in arrived()]
    json_type, text_type = "application/json", "application/text"
    assert received[0] == ("/timbr/api/get_ontologies/", json_type), "with the random key"
    assert received[1:3] == [("/timbr/api/get_ontologies/", json_type), ("/timbr/api/query/", json_type)]
    assert [kind for _, kind in received[3:8]] == [text_type] * 5, "a query, an asynchronous one, and its polls"
    assert [path for path, _ in received[5:8]] == ["/timbr/openapi"] * 3
    assert received[8:] == [("/timbr/api/mcp", json_type), ("/timbr-server/log_agent", json_type)], "the other routes"
    assert failures(doctor(backend.url, "--json")) == {}


def test_a_password_is_checked_on_request(setup, doctor, backend, tmp_path):
    users = tmp_path / "users"
    subprocess.run(["htpasswd", "-c", "-b", "-B", "-C", "5", users, "alice", "wonder:land"], check=True, capture_output=True)
    options = {"AUTH_VERIFIER": "users-file", "AUTH_USERS_FILE": users}
    assert failures(doctor(backend.url, "--json", "--user", "alice", password="wonder:land", **options)) == {}
    assert list(failures(doctor(backend.url, "--json", "--user", "alice", password="wrong", **options))) == ["get_token"]
    output = doctor(backend.url, "--json", **options)
    assert failures(output) == {} and '"skipped"' in output.stdout, "without a user the login is skipped"


def test_the_server_that_verifies_passwords_is_checked_without_a_user(setup, doctor, backend):
    directory = setup.directory({"alice": "wonder:land-9"})
    ldap = {"AUTH_VERIFIER": "ldap", "LDAP_URL": f"ldaps://localhost:{directory.tls_port}", "LDAP_BASE_DN": BASE,
            "LDAP_CA_FILE": directory.pki.ca_file, "LDAP_BIND_DN": GATEWAY}
    output = doctor(backend.url, **ldap, LDAP_BIND_PASSWORD=GATEWAY_PASSWORD)
    assert output.returncode == 0 and "ok       verifier" in output.stdout, output
    assert list(failures(doctor(backend.url, "--json", **ldap, LDAP_BIND_PASSWORD="wrong"))) == ["verifier"]
    platform = setup.platform({"alice": "wonder:land"})
    options = {"AUTH_VERIFIER": "platform", "UPSTREAM_CREDENTIAL": "platform"}
    assert failures(doctor(platform.url, "--json", **options)) == {}
    assert list(failures(doctor(platform.url, "--json", **options, PLATFORM_LOGIN_PATH="/sign-in/"))) == ["verifier"]


def test_a_failed_step_names_the_option_to_fix(doctor, backend, setup):
    assert "upstream.url" in failures(doctor(f"http://127.0.0.1:{free_port()}", "--json"))["upstream"]
    assert "upstream.url" in failures(doctor("http://no-such-host.invalid:80", "--json"))["dns"]
    impersonate = {"UPSTREAM_CREDENTIAL": "impersonate", "UPSTREAM_API_KEY": SERVICE_KEY, "AUTH_TRUST_SALT_HOLDER": "true"}
    assert failures(doctor(backend.url, "--json", **impersonate)) == {}
    # A backend that accepts only its own keys rejects the gateway's tokens.
    platform = setup.platform({"alice": "wonder:land-7"})
    assert "upstream.credential" in failures(doctor(platform.url, "--json"))["get_ontologies"]
    assert failures(doctor(backend.url, "--json", LISTEN_HTTPS="nowhere"))["configuration"] == "listen.https"
    assert failures(doctor(backend.url, "--json", AUTH_VERIFIER="users-file", AUTH_USERS_FILE="/none"))["files"] == "auth.users_file"
    gateway = setup.gateway(backend.url)
    fix = failures(doctor(f"https://localhost:{gateway.https}", "--json"))["upstream"]
    assert "upstream.ca_file" in fix
    assert "https" in failures(doctor(f"http://127.0.0.1:{gateway.https}", "--json"))["upstream"]
