"""The program that a job runs: starts the environment's server, and ends it when its owner is gone.

Sent as text to `python3 -c` in any image, so it has the standard library alone and no imports of ours:

    python3 -c <this text> PORT LEASE_PORT LEASE_SECONDS [COMMAND...]

Without a command it starts what the image's `openenv.yaml` names. The owner renews its lease by asking LEASE_PORT for
anything; after LEASE_SECONDS without that the server is ended, and with it the job. 0 seconds: no lease.
"""

import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

_PLACES = ("/app/env", "/app", ".")
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - the job's own network: nobody gets here but through the exposed port
_GRACE_SECONDS = 8.0

renewed = time.monotonic()


class Renewal(BaseHTTPRequestHandler):
    """Any request renews the lease."""

    def do_GET(self) -> None:
        """Renew."""
        global renewed
        renewed = time.monotonic()
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the log is the environment's."""


class Leases(ThreadingHTTPServer):
    """Listens for renewals."""

    def server_bind(self) -> None:
        """Bind without asking for the name of this machine: where no name service answers that takes seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]


def server_of_image(port: int) -> "tuple[list[str], str]":
    """Return command and folder of the server that the image's `openenv.yaml` names."""
    for place in _PLACES:
        path = Path(place, "openenv.yaml")
        if path.exists():
            app = re.search(r"^app:\s*[\"']?([^\s\"'#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            if app is None:
                sys.exit(f"openenv: {path} has no `app`; give the provider a command")
            command = [sys.executable, "-m", "uvicorn", app[1], "--host", _EVERYWHERE, "--port", str(port)]
            return command, place
    sys.exit(f"openenv: no openenv.yaml in {', '.join(_PLACES)}; give the provider a command")


def main() -> None:
    """Run until the server ends or nobody wants it any more; the exit code is the server's."""
    port, lease_port, lease_seconds, *command = sys.argv[1:]
    folder = None
    if not command:
        command, folder = server_of_image(int(port))
    seconds = float(lease_seconds)
    if seconds:
        leases = Leases((_EVERYWHERE, int(lease_port)), Renewal)
        threading.Thread(target=leases.serve_forever, daemon=True).start()
    try:
        server = subprocess.Popen(command, cwd=folder)
    except OSError as error:
        sys.exit(f"openenv: the environment's server cannot be started: {error}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.send_signal(number))
    while True:
        left = renewed + seconds - time.monotonic() if seconds else None
        try:
            code = server.wait(left)
        except subprocess.TimeoutExpired:
            if renewed + seconds > time.monotonic():
                continue
            print(f"openenv: nobody renewed the lease for {seconds:g} s; ending", flush=True)
            server.terminate()
            try:
                server.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
            sys.exit(0)
        sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
