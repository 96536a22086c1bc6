"""Volumes as plain folders: filled before a job starts, and looked through for what it wrote when it has ended.

Needs nothing of the machine, works everywhere, and moves whole trees. The work is done by a program beside the job
(`runstead.node.filled.program`) that knows what it did from the node's disk, so that any later one can go on.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

import runstead
from runstead.model.errors import BackendFailure, Forbidden, Invalid, NotFound, RunsteadError, Unavailable
from runstead.model.volumes import Flushed, Mount, MountRequest
from runstead.node import places
from runstead.node.filled.folders import Folders
from runstead.volumes.interface import VolumeProvider, not_saved

log = structlog.get_logger()

# Programs: each takes some processor, and up to some hundred MB of memory for large files.
_PREPARE_AT_ONCE = 8
_FLUSH_AT_ONCE = 4
_LATE_SECONDS = 15.0
_LONGEST_LINE = 1 << 22
_ERRORS: Mapping[str, type[RunsteadError]] = {
    error.__name__: error for error in (BackendFailure, Forbidden, Invalid, NotFound, Unavailable)
}

Requests = Callable[[str, int], Awaitable[Sequence[MountRequest]]]


class FilledVolumes(VolumeProvider):
    """Fills folders on this machine."""

    def __init__(self, data_dir: Path, requests: Requests, *, private_ids: bool, cache_bytes: int) -> None:
        """`requests` gives those of an attempt anew, with tokens that hold.

        With `private_ids` the files belong to the ids of the job's namespace, else to the server's user.
        """
        self._data_dir = str(data_dir.absolute())
        self._folders = Folders(self._data_dir)
        self._requests = requests
        self._private_ids = private_ids
        self._cache_bytes = cache_bytes
        self._preparing = asyncio.Semaphore(_PREPARE_AT_ONCE)
        self._flushing = asyncio.Semaphore(_FLUSH_AT_ONCE)

    async def open(self) -> None:
        """Make the folders, and finish what an earlier process began to remove."""
        await asyncio.to_thread(self._folders.open)

    async def close(self) -> None:
        """Nothing is held: what programs still run end with their callers."""

    async def prepare(self, requests: Sequence[MountRequest]) -> list[Mount]:
        """See VolumeProvider."""
        first = requests[0]
        folder = self._folders.folder(first.job_id, first.attempt)
        if await asyncio.to_thread(folder.prepared) is None:
            owner = await asyncio.to_thread(self._owner, first.namespace)
            order = {
                "op": "prepare",
                "folder": folder.path,
                "cache": self._folders.cache_path,
                "cache_bytes": self._cache_bytes,
                "owner": owner,
                "volumes": [_order(request) for request in requests],
            }
            await self._prepare(order)
        return [
            Mount(Path(folder.files_path(request.index)), request.volume.mount_path, request.volume.read_only)
            for request in requests
        ]

    async def flush(self, job_id: str, attempt: int, within_seconds: float) -> Flushed:
        """See VolumeProvider."""
        folder = self._folders.folder(job_id, attempt)
        if not await asyncio.to_thread(Path(folder.path).is_dir):
            raise NotFound(f"nothing of this attempt is on this machine: {job_id}-{attempt}")
        saved = await asyncio.to_thread(self._folders.saved, folder)
        if saved is None:
            try:
                requests = await self._requests(job_id, attempt)
                order = {"op": "flush", "folder": folder.path, "volumes": [_order(request) for request in requests]}
                saved = await self._flush(order, within_seconds)
            except RunsteadError as error:
                raise not_saved(job_id, error.message, self._folders.kept_path(job_id, attempt)) from error
        return Flushed(saved["files"], saved["bytes"], tuple(saved["notes"]))

    async def release(self, job_id: str, attempt: int, keep_unflushed: bool) -> None:
        """See VolumeProvider."""
        try:
            kept = await asyncio.to_thread(self._folders.release, job_id, attempt, keep_unsaved=keep_unflushed)
        except OSError as error:
            raise BackendFailure(f"the volumes could not be given back: {error}: {job_id}-{attempt}") from error
        if kept is not None:
            log.warning("files that a job wrote are in no bucket and are kept", path=kept)

    async def holds(self, job_id: str, attempt: int) -> bool:
        """See VolumeProvider."""
        return await asyncio.to_thread(self._folders.has, job_id, attempt)

    async def owned(self) -> list[tuple[str, int]]:
        """See VolumeProvider. What is kept as unsaved is nobody's any more, and is not among them."""
        return await asyncio.to_thread(self._folders.used)

    # Programs

    async def _prepare(self, order: Mapping[str, Any]) -> None:
        async with self._preparing:
            await self._run(order, None)

    async def _flush(self, order: Mapping[str, Any], within_seconds: float) -> dict[str, Any]:
        """Flush in the time there is, of which waiting for others is a part."""
        until = asyncio.get_running_loop().time() + within_seconds
        try:
            async with asyncio.timeout_at(until):
                await self._flushing.acquire()
        except TimeoutError as error:
            raise Unavailable(f"others were saving for longer than {within_seconds:g} s") from error
        try:
            return await self._run(order, max(until - asyncio.get_running_loop().time(), 1.0))
        finally:
            self._flushing.release()

    async def _run(self, order: Mapping[str, Any], within_seconds: float | None) -> dict[str, Any]:
        """Have a program do it; it ends with this call, however that ends."""
        program = await self._spawn()
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(json.dumps({**order, "within": within_seconds}).encode() + b"\n")
            async with asyncio.timeout(None if within_seconds is None else within_seconds + _LATE_SECONDS):
                line = await program.stdout.readline()
        except TimeoutError as error:
            raise Unavailable(f"it took longer than {within_seconds:g} s") from error
        except ConnectionError:
            line = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                program.kill()
            await program.wait()
        if not line.endswith(b"\n"):
            raise Unavailable("the program that moves the files of volumes was killed")
        answer = json.loads(line)
        if not answer["ok"]:
            raise _ERRORS.get(answer["kind"], BackendFailure)(answer["message"])
        return answer

    async def _spawn(self) -> Process:
        source = str(Path(runstead.__file__).parent.parent)
        code = f"import sys; sys.path.insert(0, {source!r}); from runstead.node.filled.program import main; main()"
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HF_XET_LOG": "error"}
        environment |= {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
        try:
            with await asyncio.to_thread(Path(self._folders.words_path).open, "ab") as words:
                return await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-c", code),
                    stdin=PIPE,
                    stdout=PIPE,
                    stderr=words,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                    limit=_LONGEST_LINE,
                )
        except OSError as error:
            raise Unavailable(f"no program for volumes can be started: {error}") from error

    def _owner(self, namespace: str) -> int | None:
        return places.first_id(self._data_dir, namespace) if self._private_ids else None


def _order(request: MountRequest) -> dict[str, Any]:
    volume = request.volume
    return {
        "index": request.index,
        "target": volume.mount_path,
        "source": volume.source,
        "path": volume.path,
        "read_only": volume.read_only,
        "endpoint": request.endpoint,
        "token": request.token,
    }
