"""Large request and response bodies."""

import hashlib
import time


def test_a_large_response_arrives_complete(gateway):
    with gateway.send("GET", "timbr/api/large/50", gateway.token(), stream=True) as response:
        assert response.status_code == 200
        received = hashlib.sha256()
        for chunk in response.iter_content(1 << 16):
            received.update(chunk)
    assert received.digest() == hashlib.sha256(b"".join(bytes([n]) * (1 << 20) for n in range(50))).digest()


def test_a_response_is_streamed_while_the_backend_produces_it(gateway):
    with gateway.send("GET", "timbr/api/large/2?pause=1", gateway.token(), stream=True) as response:
        assert len(response.raw.read(1 << 20)) == 1 << 20
        begun = time.monotonic()
        assert len(response.raw.read()) == 1 << 20
    assert time.monotonic() - begun > 0.5, "the first part arrived only with the last one"


def test_a_large_request_arrives_complete(gateway):
    body = bytes(range(256)) * (20 << 12)
    response = gateway.send("POST", "timbr/api/digest", gateway.token(), data=body)
    assert response.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_a_request_of_unknown_length_arrives_complete(gateway):
    parts = [bytes([n]) * 10_000 for n in range(200)]
    response = gateway.send("POST", "timbr/api/digest", gateway.token(), data=iter(parts))
    body = b"".join(parts)
    assert response.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
