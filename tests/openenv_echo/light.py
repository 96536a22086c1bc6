"""A server with a health check and nothing else: what an environment costs beyond itself. `python light.py PORT`."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


HTTPServer(("0.0.0.0", int(sys.argv[1])), Health).serve_forever()
