"""Hears what supervisors tell, and notices those that cannot tell any more."""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runstead.executors.attempts import Attempts
from runstead.node import framing, rundir


class Watching:
    """Calls `wake` in the event loop with ("jobs" or "logs", job_id) when something changed."""

    def __init__(self, node: Path, attempts: Attempts, wake: Callable[[str, str], None]) -> None:
        self._node = node
        self._attempts = attempts
        self._wake = wake
        self._socket: socket.socket | None = None
        self._watched: dict[str, int] = {}  # name of an attempt: pidfd of its supervisor

    def listen(self) -> None:
        """Receive the supervisors' wake-ups."""
        path = self._node / "wake"
        path.unlink(missing_ok=True)
        folder = os.open(self._node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(framing.socket_address(folder, str(self._node), "wake"))
        os.close(folder)
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def close(self) -> None:
        """Let go of everything."""
        for name in list(self._watched):
            self.unwatch(name)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def watches(self, name: str) -> bool:
        """Say whether one is watched already, or cannot be on this system."""
        return name in self._watched or not hasattr(os, "pidfd_open")

    def watch(self, name: str, facts: Mapping[str, Any]) -> None:
        """See to it that the end of a supervisor wakes us, also one that cannot say so any more."""
        if self.watches(name):
            return
        try:
            fd = os.pidfd_open(int(facts["supervisor"]))
        except (OSError, KeyError):
            return
        if not self._attempts.alive(name):  # the number may be somebody else's by now
            os.close(fd)
            return
        self._watched[name] = fd
        asyncio.get_running_loop().add_reader(fd, self._supervisor_ended, name)

    def unwatch(self, name: str) -> None:
        """Let go of one. Idempotent."""
        fd = self._watched.pop(name, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _hear(self) -> None:
        assert self._socket is not None
        for _ in range(256):
            try:
                word = self._socket.recv(64)
            except OSError:
                return
            self._wake("logs" if word[:1] == b"l" else "jobs", word[1:].decode("ascii", "replace"))

    def _supervisor_ended(self, name: str) -> None:
        self.unwatch(name)
        parsed = rundir.parse_name(name)
        if parsed is not None:
            self._wake("jobs", parsed[0])
