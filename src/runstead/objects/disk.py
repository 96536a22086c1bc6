"""Objects as files of one directory.

An object is written elsewhere in the same file system, made durable there, and then given its name by a link, which
never replaces anything and is all or nothing. A crash leaves staged files at most.
"""

import errno
import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from runstead.model.errors import BackendFailure, NotFound, RunsteadError, Unavailable
from runstead.objects.interface import ObjectStore, StoredObject, check_key

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskObjectStore(ObjectStore):
    """Keeps each object in a file; its key is the file's path below the directory."""

    def __init__(self, directory: Path) -> None:
        """Use this directory, which is made if it is not there. Raises Unavailable where that cannot be."""
        self._objects = directory / "objects"
        self._staging = directory / "staging"
        with _translated(str(directory)):
            for part in (directory, self._objects, self._staging):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_directory(directory)

    def new_staged(self) -> Path:
        """Return a new, empty file in the staging directory."""
        path = self._staging / secrets.token_hex(16)
        with _translated(str(path)):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return path

    def clear_staged(self) -> None:
        """Remove what is in the staging directory."""
        clear(self._staging)

    def put(self, key: str, staged: Path) -> None:
        """Make a staged file an object."""
        path = self._path(key)
        with _translated(key):
            _sync_file(staged)
            try:
                os.link(staged, path)
            except FileNotFoundError:
                self._make_directory(path.parent)
                _link_unless_there(staged, path)
            except FileExistsError:
                pass
            _sync_directory(path.parent)
            staged.unlink()

    def read(self, key: str, start: int, end: int) -> bytes:
        """Return these bytes of an object."""
        with _translated(key):
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_exactly(descriptor, key, start, end)
            finally:
                os.close(descriptor)

    def size(self, key: str) -> int | None:
        """Return the size of an object, or None."""
        with _translated(key):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects below a prefix."""
        with _translated(prefix):
            yield from self._below(self._path(prefix) if prefix else self._objects)

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with _translated(key):
            self._path(key).unlink(missing_ok=True)

    def url(self, key: str, seconds: int) -> str | None:  # noqa: ARG002
        """Return None: a directory has no URLs."""
        return None

    def _path(self, key: str) -> Path:
        return self._objects / check_key(key)

    def _make_directory(self, path: Path) -> None:
        """Make a directory and those above it, each durable in its parent."""
        if path.is_dir():
            return
        self._make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(path.parent)

    def _below(self, directory: Path) -> Iterator[StoredObject]:
        try:
            entries = sorted(directory.iterdir())
        except FileNotFoundError:
            return
        for path in entries:
            if path.is_dir():
                yield from self._below(path)
                continue
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
            yield StoredObject(str(path.relative_to(self._objects)), found.st_size, modified_at)


def clear(directory: Path) -> None:
    """Remove the files of a staging directory."""
    with _translated(str(directory)):
        for path in directory.iterdir():
            path.unlink(missing_ok=True)


def _link_unless_there(staged: Path, path: Path) -> None:
    try:
        os.link(staged, path)
    except FileExistsError:
        return


def _read_exactly(descriptor: int, key: str, start: int, end: int) -> bytes:
    data = os.pread(descriptor, end - start, start)
    if len(data) == end - start:
        return data
    pieces = [data]
    position = start + len(data)
    while position < end:
        piece = os.pread(descriptor, end - position, position)
        if not piece:
            raise BackendFailure(f"an object ends at byte {position}, {end} were expected: {key}")
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_directory = _sync_file


@contextmanager
def _translated(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _ours(error, what) from error


def _ours(error: OSError, what: str) -> RunsteadError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"there is no such object: {what}")
    if error.errno in _FULL:
        return Unavailable(f"the disk of the object store is full; free some space and try again: {what}", 30)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Unavailable(f"the directory of the object store cannot be used ({error.strerror}): {what}", 30)
    return BackendFailure(f"the object store failed ({error.strerror}): {what}")
