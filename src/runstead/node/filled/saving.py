"""Bringing what a job wrote into its bucket: files that are new, changed or gone, found by looking at all of them."""

import mimetypes
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runstead.model.buckets import path_problem
from runstead.model.errors import BackendFailure
from runstead.node.filled.folder import Folder, KnownFile
from runstead.node.filled.hub import Hub
from runstead.node.filled.transfer import EMPTY, FILES_AT_ONCE, Transfer

_MOST_BYTES_AT_ONCE = 8 << 30
_MOST_OPERATIONS = 5000
_MOST_NOTES = 20


@dataclass(slots=True)
class Changes:
    """How a folder differs from what is known of it."""

    written: list[tuple[str, os.stat_result]] = field(default_factory=list[tuple[str, os.stat_result]])
    doubtful: list[tuple[str, os.stat_result]] = field(default_factory=list[tuple[str, os.stat_result]])
    gone: list[str] = field(default_factory=list[str])
    left_out: "Named" = field(default_factory=lambda: Named())  # neither files nor folders: never saved
    impossible: "Named" = field(default_factory=lambda: Named())  # files that no bucket can hold

    @property
    def is_empty(self) -> bool:
        """Whether everything is in the bucket."""
        return not (self.written or self.doubtful or self.gone or self.impossible.count)


class Named:
    """Things of which only the first are named, however many there are."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, text: str) -> None:
        """Count one more."""
        self.count += 1
        if self.count <= _MOST_NOTES:
            self._first.append(text)

    def texts(self) -> list[str]:
        """Return the first, and how many more there are."""
        more = self.count - len(self._first)
        return [*self._first, f"and {more} more like these"] if more else list(self._first)


def find_changes(root: str, known: Mapping[str, KnownFile]) -> Changes:
    """Compare a folder, in which nobody writes any more, with what is known of it. Links are not followed."""
    changes = Changes()
    seen: set[str] = set()
    for path, found in _walk(root, "", changes.left_out):
        problem = path_problem(path)
        if problem is not None:
            changes.impossible.add(f"{os.fsencode(path)[:200]!r}: {problem}")
            continue
        seen.add(path)
        before = known.get(path)
        if before is None or before.size != found.st_size:
            changes.written.append((path, found))
        elif KnownFile.of(before.file_hash, found) != before:
            changes.doubtful.append((path, found))
    changes.gone = [path for path in known if path not in seen]
    return changes


def nothing_to_save(folder: Folder) -> dict[str, Any] | None:
    """Return what was saved of an attempt that has ended, if nothing is missing; else None."""
    notes = folder.prepared_notes()
    for one in folder.prepared() or ():
        if not one["read_only"]:
            changes = find_changes(folder.files_path(one["index"]), folder.known(one["index"]))
            if not changes.is_empty:
                return None
            notes += changes.left_out.texts()
    return {**folder.counted(), "notes": notes}


def _walk(root: str, inside: str, left_out: Named) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the files below a folder; what is neither file nor folder goes to `left_out`."""
    folders = [inside]
    while folders:
        folder = folders.pop()
        with os.scandir(_opened(os.path.join(root, folder))) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(path)
                elif stat.S_ISREG(found.st_mode):
                    yield path, found
                else:
                    kind = "symbolic link" if stat.S_ISLNK(found.st_mode) else "special file"
                    left_out.add(f"{path!r} is not saved: it is a {kind}, which a bucket cannot hold")


def _opened(path: str) -> str:
    """Return a folder that can be read, also one that its owner closed to himself."""
    if not os.access(path, os.R_OK | os.X_OK):
        os.chmod(path, 0o700)
    return path


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
