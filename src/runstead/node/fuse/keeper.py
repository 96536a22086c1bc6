"""Keeps the mounts of a node while their daemon is replaced: it holds what a mount lives by, and does nothing else.

    python -I -c "..." <data_dir> <socket name> <settings as JSON>

The first to come becomes the keeper, binds the socket and forks the daemon; whoever comes later finds the lock taken
and returns. A daemon that dies is forked again and gets the file descriptors of its mounts: requests that wait are
sent again, files that the kernel reads and writes itself never noticed. Should this process be killed the daemon
goes on alone; should both be, mounts fail with ENOTCONN, and what was closed lies in the staging directories.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import time

from runstead.node import daemons, framing
from runstead.node.fuse import daemon, device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOOK_SECONDS = 5.0
_IDLE_SECONDS = 3600.0
_MOST_DEATHS = 30  # within the time below; then its mounts are given up, so that nothing waits for ever
_DEATHS_WITHIN = 60.0
_LARGEST_MESSAGE = 1 << 16
_BACKLOG = 128


class Keeper:
    """What the daemon has, kept for the next one."""

    def __init__(self, node: str, settings: "dict[str, Any]", listener: socket.socket) -> None:
        self._node = node
        self._settings = settings
        self._listener = listener
        self._held: dict[str, tuple[dict[str, Any], int]] = {}
        self._deaths: list[float] = []
        self._generation = 0
        self._leaving = False

    def run(self) -> None:
        """Serve until there is nothing to serve for."""
        identity = os.stat(self._node)
        used_at = time.monotonic()
        while not self._leaving:
            child, ours = self._fork()
            while True:
                alive = self._listen(ours)
                if self._held:
                    used_at = time.monotonic()
                if not alive:
                    break
                if not daemons.is_same(self._node, identity) or time.monotonic() - used_at > _IDLE_SECONDS:
                    self._leaving = True
                if self._leaving:
                    break
            ours.close()
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(child, 0)
            self._note_death()
        self._give_up()

    def _fork(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._generation += 1
        child = os.fork()
        if child == 0:
            ours.close()
            try:
                held = list(self._held.values())
                daemon.run(self._node, self._settings, self._listener, theirs, held, self._generation)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        theirs.close()
        return child, ours

    def _listen(self, ours: socket.socket) -> bool:
        """Take what the daemon says, for a while; False when it is dead."""
        poll = select.poll()  # there may be more open files than select knows numbers
        poll.register(ours, select.POLLIN)
        if not poll.poll(_LOOK_SECONDS * 1000):
            return True
        # A file descriptor ends a read: messages do not run together around one.
        data, fds, _, _ = socket.recv_fds(ours, _LARGEST_MESSAGE, 4)
        if not data:
            return False
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            more, extra, _, _ = socket.recv_fds(ours, _LARGEST_MESSAGE, 4)
            if not more:
                return False
            data += more
            fds += extra
        waiting = list(fds)
        while data:
            size = 4 + int.from_bytes(data[:4], "big")
            if len(data) < size:
                more, extra, _, _ = socket.recv_fds(ours, _LARGEST_MESSAGE, 4)
                if not more:
                    return False
                data += more
                waiting += extra
                continue
            self._take(framing.decode(data[4:size]), waiting)
            data = data[size:]
        return True

    def _take(self, message: "dict[str, Any]", fds: list[int]) -> None:
        if message["op"] == "hold":
            order = message["order"]
            self._drop(str(order["path"]))
            self._held[str(order["path"])] = order, fds.pop(0)
        elif message["op"] == "drop":
            self._drop(str(message["path"]))
        elif message["op"] == "leave":
            self._leaving = True

    def _drop(self, path: str) -> None:
        held = self._held.pop(path, None)
        if held is not None:
            os.close(held[1])

    def _note_death(self) -> None:
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < _DEATHS_WITHIN] + [now]
        if len(self._deaths) > _MOST_DEATHS:
            self._give_up()
            self._deaths = []

    def _give_up(self) -> None:
        for path in list(self._held):
            device.abort(path)
            self._drop(path)


def main(data_dir: str, name: str, settings: str) -> None:
    """Become the keeper of a data directory, unless there is one; return when its daemon can be asked."""
    node = os.path.join(data_dir, "node")
    found = daemons.become(node, name, _BACKLOG)
    if found is None:
        return
    listener, _, _ = found
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    daemons.protect()
    Keeper(node, json.loads(settings), listener).run()
