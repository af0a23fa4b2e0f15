"""Checks that a proxy does the whole job before it is measured: a proxy that checks less would need less CPU."""

import http.client
import ssl

from idle import UNVERIFIED

JSON = "application/json"
UNKNOWN = "k-" + 32 * "0"


def verify(bench, proxy):
    """Sends a request of each kind over both ports, and requires its status."""
    key = bench.inputs.one_key()
    requests = {"a known key": (key, JSON, 200), "an unknown key": (UNKNOWN, JSON, 401), "no key": (None, JSON, 401),
                "a wrong type": (key, "image/png", 415)}
    for port, context in ((proxy.plain_port, None), (proxy.tls_port, UNVERIFIED)):
        for what, (key_sent, media_type, expected) in requests.items():
            status = _status(bench, port, context, key_sent, media_type)
            if status != expected:
                scheme = "TLS" if context else "plain"
                raise SystemExit(f"error: {proxy.name} responds to {what} with {status}, not {expected} ({scheme})")


def _status(bench, port, context, key, media_type):
    headers = {"Content-Type": media_type, **({"X-Api-Key": key} if key else {})}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10) if context is None else (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context))
    try:
        connection.request("POST", "/timbr/openapi/ontology/sales/query", bench.inputs.body.read_bytes(), headers)
        return connection.getresponse().status
    except ssl.SSLError as error:
        return error
    finally:
        connection.close()
