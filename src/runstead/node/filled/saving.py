"""Bringing what a job wrote into its bucket."""

import mimetypes
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runstead.model.errors import BackendFailure
from runstead.node.filled.changes import find_changes
from runstead.node.filled.folder import Folder, KnownFile
from runstead.node.filled.hub import Hub
from runstead.node.filled.transfer import EMPTY, FILES_AT_ONCE, Transfer

_MOST_BYTES_AT_ONCE = 8 << 30
_MOST_OPERATIONS = 5000


class Saving:
    """Saves the volumes of one attempt."""

    def __init__(self, folder: Folder, transfer: Transfer, count: Callable[[int, int], None]) -> None:
        """`count` is told of files and bytes that have come into a bucket."""
        self._folder = folder
        self._transfer = transfer
        self._count = count

    def save(self, index: int, inside: str, hub: Hub) -> list[str]:
        """Bring one volume into its bucket; return what was left out, and why.

        Raises as Hub and Transfer do; what was done by then is remembered. BackendFailure also when there are files
        that no bucket can hold, after all others were saved.
        """
        root = self._folder.files_path(index)
        changes = find_changes(root, self._folder.known(index))
        if not changes.is_empty:
            hub.check()
        written = changes.written + self._really_changed(index, root, changes.doubtful)
        for part in _parts(written):
            self._add(index, root, inside, hub, part)
        for start in range(0, len(changes.gone), _MOST_OPERATIONS):
            part = changes.gone[start : start + _MOST_OPERATIONS]
            hub.batch([{"type": "deleteFile", "path": _joined(inside, path)} for path in part])
            self._folder.remember(index, dict.fromkeys(part))
        if changes.impossible.count:
            first = changes.impossible.texts()[0]
            raise BackendFailure(f"no bucket can hold {changes.impossible.count} of the files: {first}")
        return changes.left_out.texts()

    def _really_changed(
        self, index: int, root: str, doubtful: Sequence[tuple[str, os.stat_result]]
    ) -> list[tuple[str, os.stat_result]]:
        """Return those of the files whose content is another."""
        if not doubtful:
            return []
        known = self._folder.known(index)
        hashes = self._transfer.hashes([_readable(root, path) for path, _ in doubtful])
        same = {p: KnownFile.of(h, f) for (p, f), h in zip(doubtful, hashes, strict=True) if known[p].file_hash == h}
        self._folder.remember(index, same)
        return [(path, found) for path, found in doubtful if path not in same]

    def _add(self, index: int, root: str, inside: str, hub: Hub, files: Sequence[tuple[str, os.stat_result]]) -> None:
        stored = [path for path, found in files if found.st_size]
        hashes = dict(zip(stored, self._transfer.upload(hub, [_readable(root, path) for path in stored]), strict=True))
        hub.batch([_add_operation(_joined(inside, p), hashes.get(p, EMPTY), found) for p, found in files])
        known = {p: KnownFile.of(hashes.get(p, EMPTY), os.lstat(os.path.join(root, p))) for p, _ in files}
        self._count(len(files), sum(found.st_size for _, found in files))
        self._folder.remember(index, known)


def _parts(files: Sequence[tuple[str, os.stat_result]]) -> Iterator[list[tuple[str, os.stat_result]]]:
    part: list[tuple[str, os.stat_result]] = []
    size = 0
    for path, found in files:
        part.append((path, found))
        size += found.st_size
        if len(part) >= FILES_AT_ONCE or size >= _MOST_BYTES_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _readable(root: str, path: str) -> str:
    """Return where a file is that can be read, also one that its owner closed to himself."""
    whole = os.path.join(root, path)
    if not os.access(whole, os.R_OK):
        os.chmod(whole, 0o600)
    return whole


def _add_operation(path: str, file_hash: str, found: os.stat_result) -> dict[str, Any]:
    operation = {"type": "addFile", "path": path, "xetHash": file_hash, "mtime": found.st_mtime_ns // 1_000_000}
    content_type = mimetypes.guess_type(path)[0]
    return operation if content_type is None else operation | {"contentType": content_type}


def _joined(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path
