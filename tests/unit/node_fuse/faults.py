"""A server in front of the server that fails as it is told to."""

import contextlib
import http.client
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Mode = Callable[[str, str], str]


class Proxy:
    """Hands requests on. `mode` says, of a method and a path, what becomes of one.

    "pass"; a status as "503"; "stall": no answer; "cut": half of it; "flip": a wrong byte in it; "hold": the same when
    its event, which is put into `held`, is set.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.mode: Mode = lambda _method, _path: "pass"
        self.released = threading.Event()
        self.requests: list[str] = []
        self.held: queue.Queue[threading.Event] = queue.Queue()

    def fail(self, mode: str, *, only: str = "") -> None:
        """Fail in this way from now on, for paths with this in them."""
        self.mode = lambda _method, path: mode if only in path else "pass"

    def heal(self) -> None:
        self.mode = lambda _method, _path: "pass"
        self.released.set()
        self.released = threading.Event()
        while not self.held.empty():
            self.held.get().set()

    def serve(self, proxy: "Proxy") -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                mode = proxy.mode(self.command, self.path)
                proxy.requests.append(f"{self.command} {self.path}")
                if mode.isdigit():
                    self.send_response(int(mode))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if mode == "stall":
                    proxy.released.wait(60)
                    self.close_connection = True
                    return
                if mode == "hold":
                    go_on = threading.Event()
                    proxy.held.put(go_on)
                    go_on.wait(60)
                self._hand_on(body, mode)

            def _hand_on(self, body: bytes | None, mode: str) -> None:
                connection = http.client.HTTPConnection(proxy.target, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = connection.getresponse()
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(name, value)
                    if answer.length is None:
                        self.send_header("Connection", "close")
                        self.close_connection = True
                    self.end_headers()
                    left = (answer.length or 0) // 2 if mode == "cut" else -1
                    while data := answer.read1(1 << 16):
                        if mode == "flip" and len(data) > 20:
                            data = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
                        if left >= 0:
                            data, left = data[:left], max(0, left - len(data))
                        self.wfile.write(data)
                        if left == 0:
                            self.close_connection = True
                            return
                finally:
                    connection.close()

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextlib.contextmanager
def running(target: str) -> Iterator[tuple[Proxy, str]]:
    proxy = Proxy(target)
    server = _Server(("127.0.0.1", 0), proxy.serve(proxy))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        proxy.heal()
        server.shutdown()
        server.server_close()
