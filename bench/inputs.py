"""Input files of the benchmark: keys, a certificate, bodies, bearers."""

import hashlib
import json
import os
import random
import secrets
import subprocess

HOT = 256  # keys that the load uses, spread over all keys
USERS = 64  # logins that request tokens
BODY = 200  # bytes of a request
BIG = 10 << 20


class Inputs:
    """Files in a folder, created once."""

    def __init__(self, folder, keys):
        self.folder = folder
        self.body, self.big_body = folder / "body.json", folder / "body.big"
        begin, end = '{"query":"SELECT name FROM customer WHERE note = \'', "'\"}"
        self.body.write_text(begin.ljust(BODY - len(end), "x") + end)
        self.big_body.write_bytes(b"y" * BIG)
        self.certificate, self.key = folder / "certificate.pem", folder / "key.pem"
        self.certificate_and_key = folder / "both.pem"
        self._make_certificate()
        self.keys, self.hashes, self.hot = self.key_files("keys", keys, HOT)
        self.nginx_users, self.haproxy_users = folder / "users.nginx", folder / "users.haproxy"
        self.envoy_users = folder / "users.envoy"
        users = list(enumerate(self.keys.read_text().split()))
        self.nginx_users.write_text("".join(f'"{key}" "user{n}";\n' for n, key in users))
        self.haproxy_users.write_text("".join(f"{key} user{n}\n" for n, key in users))
        self.envoy_users.write_text(json.dumps([{"key": key, "client": f"user{n}"} for n, key in users])[1:-1])
        self.salt = folder / "salt"
        self.bearers = folder / "bearers"

    def one_key(self):
        """The first key that the load uses."""
        return self.hot.read_text().split("\n", 1)[0]

    def one_bearer(self):
        """The first bearer."""
        return self.bearers.read_text().split("\n", 1)[0]

    def key_files(self, name, count, hot):
        """Writes `count` keys, their hashes in the format of tokens.keys_file, and `hot` of the keys, evenly spread."""
        chosen = random.Random(count)
        keys = [f"k-{chosen.getrandbits(128):032x}" for _ in range(count)]
        files = [self.folder / f"{name}{ending}" for ending in (".txt", ".sha256", ".hot")]
        files[0].write_text("\n".join(keys) + "\n")
        digest = lambda key: hashlib.sha256(key.encode()).hexdigest()
        files[1].write_text("".join(f"user{n}:{digest(key)}\n" for n, key in enumerate(keys)))
        files[2].write_text("\n".join(keys[:: max(1, count // hot)][:hot]) + "\n")
        return files

    def make_bearers(self, gateway):
        """Creates a salt and the bearers of a few users, with the gateway's own commands."""
        salt = subprocess.run([gateway, "salt"], check=True, capture_output=True, text=True).stdout
        self.salt.write_text(salt)
        environment = {**os.environ, "API_AUTH_SALT_FILE": str(self.salt)}
        bearers = []
        for user in range(USERS):
            made = subprocess.run([gateway, "bearer", "--user", f"user{user}", "--password-stdin"], check=True,
                                  input=secrets.token_hex(12), capture_output=True, text=True, env=environment)
            bearers.append(made.stdout.strip())
        self.bearers.write_text("\n".join(bearers) + "\n")

    def _make_certificate(self):
        """Creates an ECDSA certificate (P-256), valid for a month."""
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", self.key, "-out", self.certificate, "-days", "30", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
        self.certificate_and_key.write_text(self.certificate.read_text() + self.key.read_text())
