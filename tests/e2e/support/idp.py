"""An identity provider that signs tokens with its newest key and publishes its keys over HTTP."""

import http.server
import json
import threading
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class Idp:
    ISSUER = "https://idp.example.com/realms/timbr"

    def __init__(self):
        self.keys = []
        self.fetched = 0
        self.rotate()
        idp = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                idp.fetched += 1
                body = json.dumps({"keys": idp.published}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/jwk-set+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def rotate(self):
        """Publishes a new signing key. The previous one stays published, because its tokens are still valid."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        name = f"key-{len(self.keys)}"
        entry = (name, key, {**public, "kid": name, "use": "sig", "alg": "RS256"})
        self.published = [public for _, _, public in [*self.keys[-1:], entry]]
        self.keys.append(entry)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/certs"

    def token(self, user="alice", **claims):
        name, key, _ = self.keys[-1]
        now = int(time.time())
        claims = {"iss": self.ISSUER, "aud": ["timbr", "account"], "iat": now, "exp": now + 300,
                  "preferred_username": user, **claims}
        return jwt.encode(claims, key, algorithm="RS256", headers={"kid": name})

    def options(self):
        issuer = {"issuer": self.ISSUER, "jwks_url": self.url, "audiences": ["timbr"],
                  "user_claim": "preferred_username"}
        return {"AUTH_JWT_ISSUERS": json.dumps([issuer]), "AUTH_JWT_REFETCH": "100ms"}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
