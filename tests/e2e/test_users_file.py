"""`auth.verifier=users-file`, with files that Apache's `htpasswd`, Python's `argon2-cffi` and the gateway itself write."""

import os
import subprocess

import pytest
from argon2 import PasswordHasher

from support.processes import clean_environment, wait_until

# The tests try passwords until they are right.
OPTIONS = {"AUTH_VERIFIER": "users-file", "LIMITS_FAILURES_PER_USER": 0, "LIMITS_FAILURES_PER_ADDRESS": 0}


class Users:
    def __init__(self, path):
        self.path = path

    def htpasswd(self, *arguments):
        subprocess.run(["htpasswd", *arguments], check=True, capture_output=True)

    def add(self, user, password):
        """As an administrator does who has Apache's tools."""
        create = [] if self.path.exists() else ["-c"]
        self.htpasswd(*create, "-b", "-B", "-C", "5", str(self.path), user, password)

    def remove(self, user):
        self.htpasswd("-D", str(self.path), user)

    def ours(self, *arguments, password=None):
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
def test_the_password_counts(gateway, user, password, status):
    answer = gateway.get_token(user, password)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["reason"] == "credentials_wrong"


def knows(gateway, user, password):
    return lambda: gateway.get_token(user, password).status_code == 200


def test_users_come_and_go_while_the_gateway_runs(gateway, users):
    users.add("dave", "dives")
    wait_until("dave is known", knows(gateway, "dave", "dives"))
    token = gateway.token("dave", "dives")
    assert gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 200

    users.add("dave", "dives-again")
    wait_until("the new password counts", knows(gateway, "dave", "dives-again"))
    assert gateway.get_token("dave", "dives").status_code == 401
    ended = gateway.send("GET", "timbr/api/get_ontologies/", token)
    assert (ended.status_code, ended.json()["reason"]) == (401, "token_expired"), "the old password's token has ended"

    token = gateway.token("dave", "dives-again")
    others = gateway.token("alice")
    users.remove("dave")
    wait_until("dave is gone", lambda: gateway.send("GET", "timbr/api/get_ontologies/", token).status_code == 401)
    assert gateway.get_token("dave", "dives-again").json()["reason"] == "credentials_wrong"
    assert gateway.send("GET", "timbr/api/get_ontologies/", others).status_code == 200


def test_the_gateways_own_tool_writes_what_the_gateway_reads(gateway, users):
    added = users.ours("add", "erin", "--password-stdin", password="draws\n")
    assert added.returncode == 0 and "erin added" in added.stdout, added
    wait_until("erin is known", knows(gateway, "erin", "draws"))
    listed = users.ours("list").stdout.splitlines()
    assert {"alice\tbcrypt", "carol\targon2id", "erin\targon2id"} <= set(listed)
    assert users.ours("add", "--bcrypt", "erin", password="writes").returncode == 0
    wait_until("erin has another password", knows(gateway, "erin", "writes"))
    verified = subprocess.run(["htpasswd", "-vb", str(users.path), "erin", "writes"], capture_output=True, text=True)
    assert verified.returncode == 0, f"Apache reads it too: {verified.stderr}"
    assert users.ours("remove", "erin").returncode == 0
    wait_until("erin is gone", lambda: not knows(gateway, "erin", "writes")())
    missing = users.ours("remove", "erin")
    assert missing.returncode == 1 and "has no user erin" in missing.stderr


def test_a_file_that_cannot_be_used_changes_nothing(gateway, users):
    good = users.path.read_bytes()
    users.path.write_text("alice:in the clear\n")
    wait_until("it is told", lambda: "the users file cannot be used" in gateway.process.output)
    assert knows(gateway, "alice", "wonder:land")()
    assert "in the clear" not in gateway.process.output
    users.path.write_bytes(good)


def test_a_secret_that_kubernetes_renews(setup, backend, tmp_path):
    """A mounted secret is a link to a link to a folder, and is renewed by turning the middle one."""
    for name, password in (("first", "wonder-1"), ("second", "wonder-2")):
        (tmp_path / name).mkdir()
        Users(tmp_path / name / "users").add("alice", password)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "users").symlink_to("..data/users")
    gateway = setup.gateway(backend.url, **OPTIONS, AUTH_USERS_FILE=tmp_path / "users")
    assert knows(gateway, "alice", "wonder-1")()
    (tmp_path / "..data_tmp").symlink_to("second")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    wait_until("the second one is in force", knows(gateway, "alice", "wonder-2"))
    assert not knows(gateway, "alice", "wonder-1")()
