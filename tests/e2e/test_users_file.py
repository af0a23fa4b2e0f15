"""`auth.verifier=users-file`, with files written by Apache's `htpasswd`, Python's `argon2-cffi` and the gateway."""

import os
import subprocess

import pytest
from argon2 import PasswordHasher

from support.processes import clean_environment, wait_until

# The tests retry logins until the new password is accepted.
OPTIONS = {"AUTH_VERIFIER": "users-file", "LIMITS_FAILURES_PER_USER": 0, "LIMITS_FAILURES_PER_ADDRESS": 0}


class Users:
    def __init__(self, path):
        self.path = path

    def htpasswd(self, *arguments):
        subprocess.run(["htpasswd", *arguments], check=True, capture_output=True)

    def add(self, user, password):
        """As an administrator with Apache's tools."""
        create = [] if self.path.exists() else ["-c"]
        self.htpasswd(*create, "-b", "-B", "-C", "5", str(self.path), user, password)

    def remove(self, user):
        self.htpasswd("-D", str(self.path), user)

    def timbr_gateway_users(self, *arguments, password=None):
        command = [os.environ["TIMBR_GATEWAY_BIN"], "users", *arguments, "--auth-users-file", str(self.path)]
        return subprocess.run(command, env=clean_environment(), input=password, text=True, capture_output=True)


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    users = Users(tmp_path_factory.mktemp("users") / "users")
    users.add("alice", "wonder:land")
    users.add("bob", "builds-9")
    with users.path.open("a") as file:
        file.write(f"carol:{PasswordHasher().hash('sings')}\n")
    return users


@pytest.fixture(scope="module")
def gateway(setup, backend, users):
    return setup.gateway(backend.url, **OPTIONS, AUTH_USERS_FILE=users.path)


@pytest.mark.parametrize(("user", "password", "status"), [
    ("alice", "wonder:land", 200), ("bob", "builds-9", 200), ("carol", "sings", 200), ("alice", "builds-9", 401),
    ("carol", "builds-9", 401), ("eve", "wonder:land", 401)])
def test_the_password_is_checked(gateway, user, password, status):
    response = gateway.get_token(user, password)
    assert response.status_code == status
    if status == 401:
        assert response.json()["reason"] == "credentials_wrong"


def can_log_in(gateway, user, password):
    return lambda: gateway.get_token(user, password).status_code == 200


def test_users_are_added_and_removed_at_run_time(gateway, users):
    users.add("dave", "dives")
    wait_until("dave can log in", can_log_in(gateway, "dave", "dives"))
    token = gateway.token("dave", "dives")
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200

    users.add("dave", "dives-again")
    wait_until("the new password is accepted", can_log_in(gateway, "dave", "dives-again"))
    assert gateway.get_token("dave", "dives").status_code == 401
    rejected = gateway.send("GET", "timbr/api/get_ontologies/", token)
    assert (rejected.status_code, rejected.json()["reason"]) == (401, "token_revoked"), "the token of the old password is revoked"

    token = gateway.token("dave", "dives-again")
    others = gateway.token("alice")
    users.remove("dave")
    wait_until("dave's token is revoked", lambda: gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 401)
    assert gateway.get_token("dave", "dives-again").json()["reason"] == "credentials_wrong"
    assert gateway.send("GET", "timbr/api/get_ontologies/", others).status_code == 200


def test_timbr_gateway_users_edits_the_file(gateway, users):
    added = users.timbr_gateway_users("add", "erin", "--password-stdin", password="draws\n")
    assert added.returncode == 0 and "erin added" in added.stdout, added
    wait_until("erin can log in", can_log_in(gateway, "erin", "draws"))
    listed = users.timbr_gateway_users("list").stdout.splitlines()
    assert {"alice\tbcrypt", "carol\targon2id", "erin\targon2id"} <= set(listed)
    assert users.timbr_gateway_users("add", "--bcrypt", "erin", password="writes").returncode == 0
    wait_until("erin's new password is accepted", can_log_in(gateway, "erin", "writes"))
    verified = subprocess.run(["htpasswd", "-vb", str(users.path), "erin", "writes"], capture_output=True, text=True)
    assert verified.returncode == 0, f"Apache rejects the file: {verified.stderr}"
    assert users.timbr_gateway_users("remove", "erin").returncode == 0
    wait_until("erin cannot log in", lambda: not can_log_in(gateway, "erin", "writes")())
    missing = users.timbr_gateway_users("remove", "erin")
    assert missing.returncode == 1 and "has no user erin" in missing.stderr


def test_an_invalid_file_changes_nothing(gateway, users):
    good = users.path.read_bytes()
    users.path.write_text("alice:in the clear\n")
    wait_until("the error is logged", lambda: "cannot use the users file" in gateway.process.output)
    assert can_log_in(gateway, "alice", "wonder:land")()
    assert "in the clear" not in gateway.process.output
    users.path.write_bytes(good)


def test_a_secret_that_kubernetes_replaces(setup, backend, tmp_path):
    """A mounted secret is a symbolic link through the link `..data`, which Kubernetes points to a new folder."""
    for name, password in (("first", "wonder-1"), ("second", "wonder-2")):
        (tmp_path / name).mkdir()
        Users(tmp_path / name / "users").add("alice", password)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "users").symlink_to("..data/users")
    gateway = setup.gateway(backend.url, **OPTIONS, AUTH_USERS_FILE=tmp_path / "users")
    assert can_log_in(gateway, "alice", "wonder-1")()
    (tmp_path / "..data_tmp").symlink_to("second")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    wait_until("the second file is active", can_log_in(gateway, "alice", "wonder-2"))
    assert not can_log_in(gateway, "alice", "wonder-1")()
