"""Supervisors that several attempts share (`runstead.node.hosting`), found by what these have in common."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from runstead.executors.launching import Launcher, exchange
from runstead.model.errors import Unavailable
from runstead.node import framing

# So many die with one supervisor at most.
_MOST = 20
_OPEN_SECONDS = 10.0


@dataclass(slots=True)
class _Host:
    line: socket.socket
    left: int


class Hosts:
    """Those that take more attempts. They live on by themselves when they take no more."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._open: dict[str, _Host] = {}
        self._making = asyncio.Lock()

    async def connect(self, key: str) -> socket.socket:
        """Return a connection that a supervisor takes which others with that key share. Raises Unavailable."""
        async with self._making:
            host = self._open.get(key)
            if host is None or not host.left or not framing.is_silent(host.line):
                self._let_go(key, host)
                host = self._open[key] = await self._make()
                asyncio.get_running_loop().call_later(_OPEN_SECONDS, self._let_go, key, host)
            host.left -= 1
        mine, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(host.line, [b"C"], [theirs.fileno()])
            except OSError as error:
                mine.close()
                self._let_go(key, host)
                raise Unavailable(f"a supervisor that was to be shared is gone: {error}") from error
        mine.setblocking(False)
        return mine

    def close(self) -> None:
        """Let all go."""
        for key, host in list(self._open.items()):
            self._let_go(key, host)

    async def _make(self) -> _Host:
        line = await self._launcher.connect()
        answer = None
        with contextlib.suppress(OSError):
            answer = await exchange(line, framing.encode({"op": "host"}))
        if answer is None or not answer["ok"]:
            line.close()
            raise Unavailable("a supervisor that was to be shared died, or could not be had")
        return _Host(line, _MOST)

    def _let_go(self, key: str, host: _Host | None) -> None:
        if host is not None:
            host.line.close()
            if self._open.get(key) is host:
                del self._open[key]
