"""Large bodies, both ways."""

import hashlib
import time


def test_a_large_answer_arrives_whole(gateway):
    with gateway.send("GET", "timbr/api/large/50", gateway.token(), stream=True) as answer:
        assert answer.status_code == 200
        received = hashlib.sha256()
        for chunk in answer.iter_content(1 << 16):
            received.update(chunk)
    assert received.digest() == hashlib.sha256(b"".join(bytes([n]) * (1 << 20) for n in range(50))).digest()


def test_an_answer_is_passed_on_while_the_backend_still_makes_it(gateway):
    with gateway.send("GET", "timbr/api/large/2?pause=1", gateway.token(), stream=True) as answer:
        assert len(answer.raw.read(1 << 20)) == 1 << 20
        begun = time.monotonic()
        assert len(answer.raw.read()) == 1 << 20
    assert time.monotonic() - begun > 0.5, "the first part came only with the last"


def test_a_large_request_arrives_whole(gateway):
    body = bytes(range(256)) * (20 << 12)
    answer = gateway.send("POST", "timbr/api/digest", gateway.token(), data=body)
    assert answer.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_a_request_of_unknown_length_arrives_whole(gateway):
    parts = [bytes([n]) * 10_000 for n in range(200)]
    answer = gateway.send("POST", "timbr/api/digest", gateway.token(), data=iter(parts))
    body = b"".join(parts)
    assert answer.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
