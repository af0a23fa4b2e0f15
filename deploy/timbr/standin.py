"""Stands in for a service of Timbr: responds to every request with its own name. Usage: standin.py NAME PORT"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, PORT = sys.argv[1], int(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"served_by": NAME, "path": self.path, "user": self.headers.get("x-forwarded-user")}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = respond


ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
