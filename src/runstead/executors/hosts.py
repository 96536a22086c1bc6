"""Supervisors that several attempts share (`runstead.node.hosting`), found by what these have in common."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from runstead.executors.launching import Launcher, exchange
from runstead.model.errors import Unavailable
from runstead.node import framing

_MOST = 20  # that die with one supervisor
_MOST_EXPECTED = 200
_OPEN_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class _Host:
    line: socket.socket
    left: int


class Hosts:
    """Those that take more attempts. They live on by themselves when they take no more."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._open: dict[str, list[_Host]] = {}
        self._making = asyncio.Lock()

    async def expect(self, key: str, count: int, isolation: str, places: Sequence[Sequence[str]]) -> None:
        """Make ready for so many attempts with that key, which are about to come."""
        async with self._making:
            for begun in range(0, min(count, _MOST_EXPECTED), _MOST):
                await self._make(key, min(count - begun, _MOST), isolation, places)

    async def connect(self, key: str) -> socket.socket:
        """Return a connection that a supervisor takes which others with that key share. Raises Unavailable."""
        async with self._making:
            host = self._free(key) or await self._make(key, 0)
            host.left -= 1
        mine, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(host.line, [b"C"], [theirs.fileno()])
            except OSError as error:
                mine.close()
                self._let_go(key, host)
                raise Unavailable(f"a supervisor that was to be shared is gone: {error}") from error
        if not host.left:
            self._let_go(key, host)
        mine.setblocking(False)
        return mine

    def close(self) -> None:
        """Let all go."""
        for key, hosts in list(self._open.items()):
            for host in list(hosts):
                self._let_go(key, host)

    def _free(self, key: str) -> _Host | None:
        """Return the one that has most room."""
        for host in list(self._open.get(key, ())):
            if not framing.is_silent(host.line):
                self._let_go(key, host)
        return max(self._open.get(key, ()), key=lambda host: host.left, default=None)

    async def _make(self, key: str, expected: int, isolation: str = "", places: Sequence[Sequence[str]] = ()) -> _Host:
        message = {"op": "host", "expected": expected, "isolation": isolation, "cgroups": places}
        line = await self._launcher.connect()
        answer = None
        with contextlib.suppress(OSError):
            answer = await exchange(line, framing.encode(message))
        if answer is None or not answer["ok"]:
            line.close()
            raise Unavailable("a supervisor that was to be shared died, or could not be had")
        host = _Host(line, expected or _MOST)
        self._open.setdefault(key, []).append(host)
        asyncio.get_running_loop().call_later(_OPEN_SECONDS, self._let_go, key, host)
        return host

    def _let_go(self, key: str, host: _Host) -> None:
        host.line.close()
        if host in self._open.get(key, ()):
            self._open[key].remove(host)
            if not self._open[key]:
                del self._open[key]
