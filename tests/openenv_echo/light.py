"""A server with a health check and nothing else: what an environment costs beyond itself. `python light.py PORT`."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(HTTPServer):
    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without asking a name service who we are

    server_name, server_port = "light", 0


Server(("0.0.0.0", int(sys.argv[1])), Health).serve_forever()
