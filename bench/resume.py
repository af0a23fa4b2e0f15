"""A client that opens a TLS 1.3 connection for each request, and resumes its session with a ticket of the one before.

    resume.py PORT SECONDS KEY BODY_FILE

Prints the number of requests, of resumed handshakes and of errors.
"""

import socket
import ssl
import sys
import time

TARGET = "/timbr/openapi/ontology/sales/query"


def main(port, seconds, key, body_file):
    body = open(body_file, "rb").read()
    head = (f"POST {TARGET} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Api-Key: {key}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    session, done, resumed, errors = None, 0, 0, 0
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", int(port)), 10) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain, session=session) as connection:
                resumed += bool(connection.session_reused)
                connection.sendall(head.encode() + body)
                errors += not read_all(connection).startswith(b"HTTP/1.1 200 ")
                # Read after the response: the ticket arrives after the handshake.
                session = connection.session
        done += 1
    print(done, resumed, errors)


def read_all(connection):
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


if __name__ == "__main__":
    main(*sys.argv[1:])
