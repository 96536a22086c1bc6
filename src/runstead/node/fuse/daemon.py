"""The program that serves the volumes of a node: all mounts of one data directory, one cache, one process.

One for all, because what jobs share is in it: the cache and who may delete what in it, one process that uploads. It
costs its 45 MB once. That one defect ends it for all is met by its keeper (`keeper`), which starts another at once and
hands it the mounts.

Asked on a socket, by messages of `runstead.node.framing`:

    hello                             who is there
    prepare  mounts                   have these mounted; those that are get the new token
    flush    within, mounts           wait until what an attempt closed is in its buckets
    release  folder                   take the mounts of an attempt away
    leave                             end, if nothing is mounted

A token comes in `mounts` and is in memory only, here and in the keeper.
"""

import errno
import fcntl
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping

from runstead.node import framing
from runstead.node.fuse import device
from runstead.node.fuse.cache import Cache
from runstead.node.fuse.carrier import Carrier
from runstead.node.fuse.device import Device
from runstead.node.fuse.hub import Hub
from runstead.node.fuse.mount import STATE, VolumeMount
from runstead.node.fuse.uploads import Standing
from runstead.node.fuse.web import Web

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

UPLOAD_SECONDS = 3600.0  # of one batch
_NODES_PER_DAEMON = 1 << 40
_MOST_FILES = 16_000  # open at a time, more than which is only slower
_SWITCH_SECONDS = 0.0005  # of Python's threads: who answers the kernel must not wait for who unpacks
_KINDS = {errno.ENOENT: "NotFound", errno.EACCES: "Invalid", errno.EIO: "Unavailable", errno.ENOSPC: "Unavailable"}


class Daemon:
    """All mounts."""

    def __init__(self, node: str, settings: "Mapping[str, Any]", keeper: socket.socket, generation: int) -> None:
        self._keeper = keeper
        self._parent = os.getppid()
        self._generation = generation
        self._web = Web(float(settings["stall_seconds"]))
        self._patience = float(settings["patience_seconds"])
        self._passthrough = bool(settings["passthrough"])
        self._cache = Cache(os.path.join(node, "cache"), int(settings["cache_bytes"]), self._patience)
        self._carrier = Carrier(os.path.join(node, "xet"), UPLOAD_SECONDS)
        self._mounts: dict[str, VolumeMount] = {}
        self._lock = threading.Lock()
        self._leaving = False

    def open(self, held: "list[tuple[dict[str, Any], int]]") -> None:
        """Make ready, and go on serving what another daemon served."""
        self._cache.open()
        for order, fd in held:
            self._mounts[str(order["path"])] = self._make(order, Device(fd, passthrough=self._passthrough))

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever asks, for ever."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    time.sleep(0.1)
                    continue
                raise
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def tidy(self) -> None:
        """Give back what was not needed for a while; called now and then."""
        self._carrier.rest()
        with self._lock:
            if os.getppid() != self._parent and not self._mounts:
                os._exit(0)  # the keeper was killed, and there is nothing to serve

    def _attend(self, connection: socket.socket) -> None:
        with connection:
            message = framing.receive(connection)
            if message is None:
                return
            try:
                answer = self._do(message)
            except OSError as error:
                kind = _KINDS.get(error.errno or 0, "BackendFailure")
                answer = {"ok": False, "kind": kind, "message": error.strerror or str(error)}
            except Exception as error:
                sys.excepthook(type(error), error, error.__traceback__)
                answer = {"ok": False, "kind": "BackendFailure", "message": f"a defect: {error!r}"}
            try:
                connection.sendall(framing.encode(answer))
            except OSError:
                pass  # whoever asked is gone, and asks again

    def _do(self, message: "dict[str, Any]") -> "dict[str, Any]":
        operation = message["op"]
        if operation == "prepare":
            with self._lock:
                if self._leaving:
                    raise OSError(errno.EIO, "the program for volumes is ending; ask again")
                for order in message["mounts"]:
                    self._prepare(order)
            return {"ok": True}
        if operation == "flush":
            return self._flush(float(message["within"]), message["mounts"])
        if operation == "release":
            with self._lock:
                self._release(str(message["folder"]))
            return {"ok": True}
        if operation == "leave":
            with self._lock:
                if not self._mounts:
                    self._leaving = True
                    self._carrier.stop()
                    self._tell_keeper({"op": "leave"})
            return {"ok": True, "mounts": len(self._mounts)}
        return {
            "ok": True,
            "pid": os.getpid(),
            "mounts": sorted(self._mounts),
            "cached_bytes": self._cache.used_bytes,
            "fetched_bytes": self._cache.fetched_bytes,
        }

    def _prepare(self, order: "dict[str, Any]") -> None:
        path = str(order["path"])
        known = self._mounts.get(path)
        if known is not None and known.is_alive():
            known.renew(str(order["token"]))
            return
        if known is not None:
            self._end(known)
        device.abort(path)  # what a daemon left that nobody replaced
        self._hub(order).check()
        self._mounts[path] = self._make(order, None)

    def _make(self, order: "dict[str, Any]", found: Device | None) -> VolumeMount:
        mount = VolumeMount(
            str(order["path"]),
            self._hub(order),
            self._cache,
            self._carrier,
            read_only=bool(order["read_only"]),
            owner=int(order["owner"]),
            first_node=self._generation * _NODES_PER_DAEMON + 2,
            passthrough=self._passthrough,
        )
        served = mount.begin(found)
        if found is None:
            self._tell_keeper({"op": "hold", "order": order}, served.fd)
        return mount

    def _hub(self, order: "dict[str, Any]") -> Hub:
        return Hub(
            self._web,
            str(order["endpoint"]),
            str(order["bucket"]),
            str(order["folder"]),
            str(order["token"]),
            self._patience,
        )

    def _flush(self, within: float, orders: "list[dict[str, Any]]") -> "dict[str, Any]":
        until = time.monotonic() + within
        standings: list[Standing] = []
        for order in orders:
            if order["read_only"]:
                continue
            path = str(order["path"])
            mount = self._mounts.get(path)
            if mount is not None:
                mount.renew(str(order["token"]))
                standings.append(mount.flush(until))
            elif os.path.isdir(path + STATE):
                left = VolumeMount(
                    path, self._hub(order), self._cache, self._carrier, read_only=False, owner=int(order["owner"])
                )
                left.recover()
                try:
                    standings.append(left.flush(until))
                finally:
                    left.end()
        pending = sum(standing.pending for standing in standings)
        return {
            "ok": True,
            "files": sum(standing.files for standing in standings),
            "bytes": sum(standing.bytes for standing in standings),
            "pending": pending,
            "notes": [note for standing in standings for note in standing.notes],
            "failure": next((s.failure for s in standings if s.failure), None) if pending else None,
        }

    def _release(self, folder: str) -> None:
        for path in [path for path in self._mounts if path.startswith(folder + "/")]:
            self._end(self._mounts.pop(path))

    def _end(self, mount: VolumeMount) -> None:
        self._mounts.pop(mount.path, None)
        self._tell_keeper({"op": "drop", "path": mount.path})
        mount.end()

    def _tell_keeper(self, message: "Mapping[str, Any]", fd: int | None = None) -> None:
        try:
            socket.send_fds(self._keeper, [framing.encode(message)], [] if fd is None else [fd])
        except OSError:
            pass  # the keeper was killed: we go on alone


def run(
    node: str,
    settings: "Mapping[str, Any]",
    listener: socket.socket,
    keeper: socket.socket,
    held: "list[tuple[dict[str, Any], int]]",
    generation: int,
) -> None:
    """Be the daemon; does not return while the data directory is there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.stack_size(1 << 19)
    sys.setswitchinterval(_SWITCH_SECONDS)
    _make_room_for_files(listener.fileno())
    daemon = Daemon(node, settings, keeper, generation)
    daemon.open(held)
    threading.Thread(target=daemon.serve, args=(listener,), daemon=True).start()
    while True:
        time.sleep(5)
        daemon.tidy()


def _make_room_for_files(fd: int) -> None:
    """Have the kernel's table of our open files grow now: with threads each growth takes it 10 ms or more."""
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1, _MOST_FILES)
    os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, most))
