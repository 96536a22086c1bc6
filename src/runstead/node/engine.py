"""Speaks with a container engine of the machine, Docker's or one that is compatible, over its unix socket.

The API is Docker's (https://docs.docker.com/reference/api/engine/), asked without a version in the path: every engine
answers with the newest that it has, and what is used here has been the same since 1.40.
"""

import http.client
import json
import socket
import tarfile
from collections.abc import Mapping
from urllib.parse import quote, urlencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

# Labels of our containers, by which they are found again.
INSTANCE = "runstead.instance"
JOB = "runstead.job"
ATTEMPT = "runstead.attempt"
VARIABLES = (
    "runstead.variables"  # names of those that we gave it, as JSON: what is made of it must not have their values
)
# A folder in containers that are only reached by the API, for what must outlive a server.
STATE = "/.runstead"

_ANSWER_SECONDS = 120.0  # making a container of a large image takes an engine a while
_TALK_SECONDS = 30.0
_HEAD_BYTES = 65536
_FRAME_BYTES = 8


class EngineError(Exception):
    """The engine refused; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("engine", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Reach the socket."""
        self.sock = _connect(self._path, self.timeout)


class Engine:
    """One engine. Everything raises OSError when it cannot be reached, and EngineError when it refuses."""

    def __init__(self, path: str) -> None:
        self._path = path

    def call(
        self,
        method: str,
        path: str,
        *,
        query: "Mapping[str, str | list[str]] | None" = None,
        body: object = None,
        seconds: float = _ANSWER_SECONDS,
    ) -> "Any":
        """Ask once and return what the answer holds; None when it holds nothing."""
        connection, answer = self._ask(method, path, query, body, {}, seconds)
        try:
            text = answer.read()
            return json.loads(text) if text.strip() else None
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"the engine's answer makes no sense: {error}") from error
        finally:
            connection.close()

    def pull(self, image: str, login: str | None, seconds: float) -> "Generator[dict[str, Any]]":
        """Bring an image, yielding the engine's reports; `login` is the value of its X-Registry-Auth.

        `seconds` is how long the engine may be silent.
        """
        headers = {"X-Registry-Auth": login} if login else {}
        connection, answer = self._ask("POST", "/images/create", {"fromImage": image}, None, headers, seconds)
        try:
            while line := answer.readline():
                if not line.strip():
                    continue
                report: Any = json.loads(line)
                detail: Any = report.get("errorDetail") or {}
                failure: Any = report.get("error") or detail.get("message")
                if failure:
                    raise EngineError(500, str(failure))
                yield report
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"the engine's answer makes no sense: {error}") from error
        finally:
            connection.close()

    def attach(self, container: str) -> socket.socket:
        """Return a connection on which the container's output comes, as `Frames` reads it."""
        return self._upgrade(f"/containers/{quote(container)}/attach?stream=1&stdout=1&stderr=1", b"")

    def execute(self, container: str, command: "Mapping[str, Any]") -> tuple[str, socket.socket]:
        """Start a program in a container; return its number and a connection with its outputs and its input.

        `command` is what the API's `exec` asks for. Without a terminal outputs come as `Frames` reads them.
        """
        number = str(self.call("POST", f"/containers/{quote(container)}/exec", body=command)["Id"])
        asked = json.dumps({"Detach": False, "Tty": bool(command.get("Tty"))}).encode()
        return number, self._upgrade(f"/exec/{number}/start", asked)

    def _upgrade(self, path: str, body: bytes) -> socket.socket:
        """Ask for something that is answered by bytes both ways."""
        connection = _connect(self._path, _TALK_SECONDS)
        try:
            kind = "Content-Type: application/json\r\n" if body else ""
            headers = f"Host: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n{kind}Content-Length: {len(body)}\r\n"
            connection.sendall(f"POST {path} HTTP/1.1\r\n{headers}\r\n".encode() + body)
            head = b""
            while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is output already
                byte = connection.recv(1)
                if not byte or len(head) > _HEAD_BYTES:
                    raise OSError("the engine closed the connection for a container's output")
                head += byte
            status = int(head.split(None, 2)[1])
            if status not in (101, 200):
                raise EngineError(status, _reason(connection.recv(_HEAD_BYTES)) or f"{path}: status {status}")
        except BaseException:
            connection.close()
            raise
        return connection

    def wait(self, container: str) -> socket.socket:
        """Return a connection that the engine closes, some time after the container has ended."""
        connection = _connect(self._path, _TALK_SECONDS)
        path = f"/containers/{quote(container)}/wait"
        head = f"POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        try:
            connection.sendall(head.encode())
        except BaseException:
            connection.close()
            raise
        return connection

    def put_program(self, container: str, path: str, program: bytes) -> None:
        """Put an executable file into a container, which need not run."""
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.mode, entry.size = 0o755, len(program)
        # No padding but the end's two blocks: podman reads no further, and takes the rest for an error.
        padded = program + bytes(-len(program) % tarfile.BLOCKSIZE)
        archive = entry.tobuf() + padded + bytes(2 * tarfile.BLOCKSIZE)
        target = f"/containers/{quote(container)}/archive"
        connection, _ = self._ask("PUT", target, {"path": "/"}, archive, {}, _ANSWER_SECONDS)
        connection.close()

    def remove(self, container: str) -> None:
        """Kill and delete a container; one that is not there is fine."""
        try:
            self.call("DELETE", f"/containers/{quote(container)}", query={"force": "true", "v": "true"})
        except EngineError as error:
            if error.status != 404:
                raise

    def _ask(
        self,
        method: str,
        path: str,
        query: "Mapping[str, str | list[str]] | None",
        body: object,
        headers: "Mapping[str, str]",
        seconds: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = _Connection(self._path, seconds)
        try:
            target = f"{path}?{urlencode(query, doseq=True)}" if query else path
            raw = isinstance(body, bytes)
            data = body if raw or body is None else json.dumps(body).encode()
            kind = {} if data is None else {"Content-Type": f"application/{'x-tar' if raw else 'json'}"}
            connection.request(method, target, data, {**kind, **headers})
            answer = connection.getresponse()
            if answer.status >= 400:
                raise EngineError(answer.status, _reason(answer.read(_HEAD_BYTES)) or answer.reason)
        except http.client.HTTPException as error:
            connection.close()
            raise OSError(f"the engine's answer makes no sense: {error}") from error
        except BaseException:
            connection.close()
            raise
        return connection, answer


class Frames:
    """Output of a container as the engine sends it: one byte that names the stream, three of nothing, a length."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = 0
        self._left = 0  # of the frame that has begun

    def feed(self, data: bytes) -> "list[tuple[int, bytes]]":
        """Take a piece and return the output in it, each with its stream: 1 or 2."""
        found: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                found.append((self._stream, piece))
                self._left -= len(piece)
                at += len(piece)
                continue
            part = data[at : at + _FRAME_BYTES - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) == _FRAME_BYTES:
                self._stream, self._left = self._head[0], int.from_bytes(self._head[4:], "big")
                self._head = b""
        return found


def _connect(path: str, seconds: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _reason(text: bytes) -> str:
    """Return what an error says for people."""
    start = text.find(b"{")
    try:
        found: Any = json.loads(text[start : text.rfind(b"}") + 1]) if start >= 0 else {}
    except ValueError:
        found = {}
    message: Any = found.get("message") or found.get("cause")
    return str(message or text.decode("utf-8", "replace")).strip()[:2000]
