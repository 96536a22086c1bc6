"""The server's side of the launcher: starts it, finds it, asks it."""

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import runstead
from runstead.model.errors import BackendFailure, Unavailable
from runstead.node import framing, launcher, syscalls

_PREFIX = "launcher-"
_START_SECONDS = 20.0
_ANSWER_SECONDS = 60.0


class Launcher:
    """Reaches the launcher of this code's version in one data directory, starting it when there is none."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._node = data_dir / "node"
        self._name = f"{_PREFIX}{_version()}"
        self._instance = ""
        self._folder = -1
        self._starting = asyncio.Lock()

    async def open(self, instance: str) -> None:
        """Start the launcher when it is not there, and ask those of other versions to leave."""
        self._instance = instance
        if not syscalls.LINUX and len(os.fsencode(self._node / self._name)) > 100:
            raise Unavailable(f"the data directory's path is too long for sockets on this system: {self._data_dir}")
        self._folder = os.open(self._node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        await self.ask({"op": "hello"}, await self.connect())
        for path in await asyncio.to_thread(lambda: list(self._node.glob(_PREFIX + "*"))):
            if path.suffix != ".lock" and path.name != self._name:
                await self._dismiss(path.name)

    async def close(self, *, leave: bool) -> None:
        """Let go; with `leave` the launcher goes too."""
        if leave:
            await self._dismiss(self._name)
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    async def ask(self, message: Mapping[str, object], connection: socket.socket) -> dict[str, Any] | None:
        """Send a message and return the answer; None when it was taken, and whoever took it died.

        The connection, which `connect` has returned, is closed.
        """
        try:
            data = framing.encode(message)
            if len(data) > framing.LIMIT:
                raise BackendFailure(f"the job's arguments and environment are too large: {len(data)} bytes")
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await exchange(connection, data)
        except TimeoutError as error:
            raise Unavailable(f"the launcher did not answer within {_ANSWER_SECONDS:.0f} s") from error
        except OSError:
            return None
        finally:
            connection.close()

    async def connect(self) -> socket.socket:
        """Return a connection that a supervisor to be takes, starting the launcher when there is none."""
        for attempt in range(3):
            connection = await self._try_connect(self._name)
            if connection is not None:
                return connection
            async with self._starting:
                connection = await self._try_connect(self._name)
                if connection is not None:
                    return connection
                await asyncio.to_thread(self._spawn)
                await asyncio.sleep(0.05 * attempt)
        raise Unavailable(f"the launcher does not start; its last words are in {self._node}/launcher.log")

    async def _try_connect(self, name: str) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        address = framing.socket_address(self._folder, str(self._node), name)
        try:
            await asyncio.get_running_loop().sock_connect(connection, address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except BlockingIOError as error:
            connection.close()
            raise Unavailable("the launcher has too many starts waiting", retry_after_seconds=1) from error
        return connection

    async def _dismiss(self, name: str) -> None:
        with contextlib.suppress(OSError, TimeoutError, Unavailable):
            connection = await self._try_connect(name)
            if connection is not None:
                async with asyncio.timeout(5):
                    await exchange(connection, framing.encode({"op": "leave"}))
                connection.close()
        for left in (name, name + ".lock"):
            (self._node / left).unlink(missing_ok=True)

    def _spawn(self) -> None:
        """Start a launcher and wait until it listens. Its environment has nothing of ours."""
        source = str(Path(runstead.__file__).parent.parent)
        path = f"import sys; sys.path.insert(0, {source!r}); "
        code = f"{path}from runstead.node.launcher import main; main(*sys.argv[1:])"
        farewell = f"{path}from runstead.executors.network import sweep; sweep({self._instance!r})"
        with (self._node / "launcher.log").open("ab") as log:
            try:
                subprocess.run(
                    [sys.executable, "-I", "-S", "-c", code, str(self._data_dir), self._name, farewell],
                    cwd="/",
                    env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    timeout=_START_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"the launcher does not start: {error}") from error


async def exchange(connection: socket.socket, data: bytes) -> dict[str, Any] | None:
    """Send a message and return the answer; None when there is none."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, data)
    head = await _exactly(connection, 4)
    body = await _exactly(connection, int.from_bytes(head, "big")) if head else None
    return framing.decode(body) if body else None


async def _exactly(connection: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not part:
            return None
        data += part
    return data


def _version() -> str:
    """Return a short name of the code that a launcher runs: its modules and its interpreter."""
    digest = hashlib.sha256(sys.version.encode() + sys.executable.encode())
    for path in sorted(Path(launcher.__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
