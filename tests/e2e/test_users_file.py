"""`auth.verifier=users-file`, with hashes as Apache writes them."""

import bcrypt
import pytest


@pytest.fixture(scope="module")
def gateway(setup, backend, tmp_path_factory):
    def line(user, password, prefix):
        return f"{user}:{bcrypt.hashpw(password, bcrypt.gensalt(5)).decode().replace('$2b$', prefix)}\n"

    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text(line("alice", b"wonder:land", "$2y$") + line("bob", b"builder", "$2b$"))
    return setup.gateway(backend.url, AUTH_VERIFIER="users-file", AUTH_USERS_FILE=users)


@pytest.mark.parametrize(("user", "password", "status"), [
    ("alice", "wonder:land", 200), ("bob", "builder", 200), ("alice", "builder", 401), ("eve", "wonder:land", 401)])
def test_the_password_counts(gateway, user, password, status):
    answer = gateway.get_token(user, password)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["reason"] == "credentials_wrong"
