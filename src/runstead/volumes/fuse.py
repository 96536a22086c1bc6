"""Volumes as mounts: filled as they are read, and carried to their buckets as files are closed.

Needs Linux, root and /dev/fuse (`problem` says what is missing). The mounts are those of a program beside the jobs
(`runstead.node.fuse`), one per data directory, which outlives the server; here it is started, found and asked.

    <data_dir>/node/volumes/<job>-<attempt>/
        daemon           the socket of the program that serves it
        <index>          a mount
        <index>.state/   what was written and is in no bucket yet
    <data_dir>/node/unsaved/<job>-<attempt>/    the same, given back with something that is in no bucket
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

import runstead
from runstead.model.errors import BackendFailure, Invalid, NotFound, RunsteadError, Unavailable
from runstead.model.volumes import Flushed, Mount, MountRequest, VolumeKind
from runstead.node import framing, places, removal, rundir, syscalls
from runstead.node.fuse import device, keeper
from runstead.node.fuse.leftovers import has_unsaved, lay_out
from runstead.volumes.interface import VolumeProvider, not_saved

log = structlog.get_logger()

_PREFIX = "volumes-"
_SERVED_BY = "daemon"
_TRASH = ".trash-"
_START_SECONDS = 20.0
_ANSWER_SECONDS = 120.0
_LATE_SECONDS = 15.0
_ERRORS: Mapping[str, type[RunsteadError]] = {
    error.__name__: error for error in (BackendFailure, Invalid, NotFound, Unavailable)
}

Requests = Callable[[str, int], Awaitable[Sequence[MountRequest]]]


def problem() -> str | None:
    """Return what this machine lacks for mounts; None if nothing."""
    if not syscalls.LINUX:
        return "mounts need Linux"
    if os.geteuid() != 0:
        return "mounts need a server that runs as root"
    with tempfile.TemporaryDirectory(prefix="runstead-mount-") as folder:
        try:
            os.close(device.Device.mount(folder, read_only=True, source="runstead").fd)
        except OSError as error:
            return f"mounts need {device.DEVICE}, and to be allowed to mount it: {error.strerror}"
        device.abort(folder)
    return None


class FuseVolumes(VolumeProvider):
    """Mounts buckets on this machine."""

    def __init__(
        self,
        data_dir: Path,
        requests: Requests,
        *,
        private_ids: bool,
        cache_bytes: int,
        patience_seconds: float = 30.0,
        stall_seconds: float = 20.0,
        passthrough: bool = True,
    ) -> None:
        """`requests` gives those of an attempt anew, with tokens that hold.

        With `private_ids` files belong to the first id of the job's namespace, else to the server's user.
        `cache_bytes` bounds what is kept of what jobs read. A store that does not answer is tried again for
        `patience_seconds`, and a connection may say nothing for `stall_seconds`, before a program that reads gets EIO.
        Without `passthrough` all bytes go through the program, as with kernels before 6.9.
        """
        self._data_dir = data_dir.absolute()
        self._node = self._data_dir / "node"
        self._used = self._node / "volumes"
        self._unsaved = self._node / "unsaved"
        self._requests = requests
        self._private_ids = private_ids
        self._settings = {
            "cache_bytes": cache_bytes,
            "patience_seconds": patience_seconds,
            "stall_seconds": stall_seconds,
            "passthrough": passthrough,
        }
        self._name = _PREFIX + _version(self._settings)
        self._folder = -1
        self._starting = asyncio.Lock()

    async def open(self) -> None:
        """Make the folders, and ask programs of other versions to leave if they serve nothing.

        The program of this version is started by the first who needs it.
        """
        await asyncio.to_thread(self._make_folders)
        for path in await asyncio.to_thread(lambda: list(self._node.glob(_PREFIX + "*"))):
            if path.is_socket() and path.name != self._name:
                with contextlib.suppress(RunsteadError):
                    await self._ask_if_there(path.name, {"op": "leave"}, 5)

    def _make_folders(self) -> None:
        for path in (self._used, self._unsaved):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = os.open(self._node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for path in self._used.iterdir():
            if path.name.startswith(_TRASH):
                removal.delete_tree(str(path))

    async def close(self) -> None:
        """Let go of what this process holds; the program stays if it serves a mount."""
        if self._folder >= 0:
            with contextlib.suppress(RunsteadError):
                await self._ask_if_there(self._name, {"op": "leave"}, 5)
            os.close(self._folder)
            self._folder = -1

    async def prepare(self, requests: Sequence[MountRequest]) -> list[Mount]:
        """See VolumeProvider."""
        first = requests[0]
        for request in requests:
            if request.volume.kind is not VolumeKind.BUCKET:
                raise Invalid(f"only buckets can be mounted yet, not a {request.volume.kind}: {request.volume.source}")
        folder = self._used / rundir.attempt_name(first.job_id, first.attempt)
        server = await asyncio.to_thread(self._serving, folder, self._name)
        orders = await asyncio.to_thread(self._orders, folder, requests)
        answer = await self._ask_if_there(server, {"op": "prepare", "mounts": orders}, _ANSWER_SECONDS)
        if answer is None:  # that program is dead: another takes its place
            await asyncio.to_thread((folder / _SERVED_BY).write_text, self._name)
            await self._ask(self._name, {"op": "prepare", "mounts": orders}, _ANSWER_SECONDS)
        return [
            Mount(folder / str(request.index), request.volume.mount_path, request.volume.read_only)
            for request in requests
        ]

    async def flush(self, job_id: str, attempt: int, within_seconds: float) -> Flushed:
        """See VolumeProvider."""
        folder = await asyncio.to_thread(self._find, job_id, attempt)
        if folder is None:
            raise NotFound(f"there is nothing of its volumes on this node: {job_id}-{attempt}")
        try:
            requests = await self._requests(job_id, attempt)
            orders = await asyncio.to_thread(self._orders, folder, requests)
            message = {"op": "flush", "within": within_seconds, "mounts": orders}
            server = await asyncio.to_thread(self._serving, folder, None)
            answer = await self._ask_if_there(server, message, within_seconds + _LATE_SECONDS)
            if answer is None:
                answer = await self._ask(self._name, message, within_seconds + _LATE_SECONDS)
        except RunsteadError as error:
            left = await asyncio.to_thread(has_unsaved, str(folder))
            raise not_saved(job_id, error.message, self._unsaved / folder.name if left else None) from error
        if answer["pending"]:
            reason = answer["failure"] or f"it took longer than {within_seconds:g} s"
            what = f"{answer['pending']} of the job's changes are not in its buckets: {reason}"
            raise not_saved(job_id, what, self._unsaved / folder.name)
        return Flushed(int(answer["files"]), int(answer["bytes"]), tuple(answer["notes"]))

    async def release(self, job_id: str, attempt: int, keep_unflushed: bool) -> None:
        """See VolumeProvider."""
        folder = await asyncio.to_thread(self._find, job_id, attempt)
        if folder is None:
            return
        server = await asyncio.to_thread(self._serving, folder, None)
        await self._ask_if_there(server, {"op": "release", "folder": str(folder)}, _ANSWER_SECONDS)
        try:
            kept = await asyncio.to_thread(self._remove, folder, keep_unflushed)
        except OSError as error:
            raise BackendFailure(f"the volumes could not be given back: {error}: {folder.name}") from error
        if kept is not None:
            log.warning("files that a job wrote are in no bucket and are kept", path=str(kept))

    async def holds(self, job_id: str, attempt: int) -> bool:
        """See VolumeProvider."""
        folder = await asyncio.to_thread(self._find, job_id, attempt)
        return folder is not None and await asyncio.to_thread((folder / _SERVED_BY).exists)

    async def owned(self) -> list[tuple[str, int]]:
        """See VolumeProvider. What is kept as unsaved is nobody's any more, and is not among them."""
        names = await asyncio.to_thread(lambda: sorted(path.name for path in self._used.iterdir()))
        return [parsed for name in names if (parsed := rundir.parse_name(name)) is not None]

    # Folders

    def _find(self, job_id: str, attempt: int) -> Path | None:
        name = rundir.attempt_name(job_id, attempt)
        return next((path for path in (self._used / name, self._unsaved / name) if path.is_dir()), None)

    def _serving(self, folder: Path, default: str | None) -> str:
        """Return the socket of the program that serves an attempt; with a default, it is that one from now on."""
        if default is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return (folder / _SERVED_BY).read_text()
        except FileNotFoundError:
            if default is not None:
                (folder / _SERVED_BY).write_text(default)
            return default or self._name

    def _remove(self, folder: Path, keep_unsaved: bool) -> Path | None:
        """Remove the folder of an attempt; return where it is instead because something in it is in no bucket."""
        for path in folder.iterdir():
            if path.name.isdigit() and folder.parent == self._used:
                device.abort(str(path))
                path.rmdir()
        if keep_unsaved and has_unsaved(str(folder)):
            kept = self._unsaved / folder.name
            if folder != kept:
                folder.rename(kept)
            lay_out(str(kept))
            return kept
        # Renamed first: a crash must not leave half a folder that looks whole.
        trash = self._used / f"{_TRASH}{folder.name}-{os.urandom(4).hex()}"
        folder.rename(trash)
        removal.delete_tree(str(trash))
        return None

    def _orders(self, folder: Path, requests: Sequence[MountRequest]) -> list[dict[str, Any]]:
        return [
            {
                "path": str(folder / str(request.index)),
                "owner": places.first_id(str(self._data_dir), request.namespace) if self._private_ids else os.geteuid(),
                "read_only": request.volume.read_only,
                "endpoint": request.endpoint,
                "bucket": request.volume.source,
                "folder": request.volume.path,
                "token": request.token,
            }
            for request in requests
        ]

    # The program

    async def _ask(self, name: str, message: Mapping[str, object], seconds: float) -> dict[str, Any]:
        """Ask the program, starting it when it is not there."""
        for attempt in range(5):
            answer = await self._ask_if_there(name, message, seconds)
            if answer is not None:
                return answer
            async with self._starting:
                await asyncio.to_thread(self._spawn)
                await asyncio.sleep(0.05 * attempt)
        raise Unavailable(f"the program for volumes does not start; its last words are in {self._node}/volumes.log")

    async def _ask_if_there(self, name: str, message: Mapping[str, object], seconds: float) -> dict[str, Any] | None:
        """Ask a program; None when it is not there, or died over it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        address = framing.socket_address(self._folder, str(self._node), name)
        try:
            async with asyncio.timeout(seconds):
                await loop.sock_connect(connection, address)
                await loop.sock_sendall(connection, framing.encode(message))
                data = b""
                while part := await loop.sock_recv(connection, 1 << 16):
                    data += part
        except TimeoutError as error:
            raise Unavailable(f"the program for volumes did not answer within {seconds:g} s") from error
        except OSError:
            return None
        finally:
            connection.close()
        if len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            return None
        answer: dict[str, Any] = framing.decode(data[4:])
        if not answer["ok"]:
            raise _ERRORS.get(answer["kind"], BackendFailure)(answer["message"])
        return answer

    def _spawn(self) -> None:
        """Start the program and wait until it can be asked. Its environment has nothing of ours."""
        source = str(Path(runstead.__file__).parent.parent)
        path = f"import sys; sys.path.insert(0, {source!r}); "
        code = f"{path}from runstead.node.fuse.keeper import main; main(*sys.argv[1:])"
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8"}
        environment |= {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
        with (self._node / "volumes.log").open("ab") as words:
            try:
                subprocess.run(
                    [sys.executable, "-I", "-c", code, str(self._data_dir), self._name, json.dumps(self._settings)],
                    cwd="/",
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,
                    timeout=_START_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"the program for volumes does not start: {error}") from error


def _version(settings: Mapping[str, object]) -> str:
    """Return a short name of the code that the program runs, and of how it is set."""
    digest = hashlib.sha256(f"{sys.version} {sys.executable} {json.dumps(settings, sort_keys=True)}".encode())
    for path in sorted(Path(keeper.__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
