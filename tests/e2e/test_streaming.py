"""Large bodies, both ways."""

import hashlib


def test_a_large_answer_arrives_whole(gateway):
    with gateway.send("GET", "timbr/api/large/50", gateway.token(), stream=True) as answer:
        assert answer.status_code == 200
        received = sum(len(chunk) for chunk in answer.iter_content(1 << 16))
    assert received == 50 << 20


def test_a_large_request_arrives_whole(gateway):
    body = bytes(range(256)) * (20 << 12)
    answer = gateway.send("POST", "timbr/api/digest", gateway.token(), data=body)
    assert answer.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_a_request_of_unknown_length_arrives_whole(gateway):
    parts = [bytes([n]) * 10_000 for n in range(200)]
    answer = gateway.send("POST", "timbr/api/digest", gateway.token(), data=iter(parts))
    body = b"".join(parts)
    assert answer.json()["data"] == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
