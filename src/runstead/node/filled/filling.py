"""Filling a folder with the files of a bucket."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from runstead.model.errors import Unavailable
from runstead.node.filled.cache import ContentCache
from runstead.node.filled.folder import Folder, KnownFile
from runstead.node.filled.hub import BucketFile, Hub
from runstead.node.filled.transfer import FILES_AT_ONCE, Transfer

_LONGEST_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Task:
    """A volume to fill or to save."""

    index: int
    path: str  # the folder of the bucket
    read_only: bool


class Filling:
    """Fills the volumes of one attempt."""

    def __init__(self, folder: Folder, cache: ContentCache, transfer: Transfer, owner: int | None) -> None:
        """`owner` is the machine's id of the job's root user; None when that is our own."""
        self._folder = folder
        self._cache = cache
        self._transfer = transfer
        self._owner = owner

    def fill(self, task: Task, hub: Hub) -> list[str]:
        """Fill the empty folder of a volume; return what could not be shown, and why."""
        root = self._folder.files_path(task.index)
        self._make(root)
        files, notes = _fitting([(_inside(file.path, task.path), file) for file in hub.files(task.path)])
        made = {root}
        for start in range(0, len(files), FILES_AT_ONCE):
            part = [(os.path.join(root, path), file) for path, file in files[start : start + FILES_AT_ONCE]]
            for target, _ in part:
                self._make_parents(os.path.dirname(target), made)
            (self._show if task.read_only else self._copy)(hub, part)
        if not task.read_only:
            known = {path: KnownFile.of(f.file_hash, os.lstat(os.path.join(root, path))) for path, f in files}
            self._folder.remember(task.index, known, anew=True)
        return notes

    def _show(self, hub: Hub, files: Sequence[tuple[str, BucketFile]]) -> None:
        """Link files from the cache, after those that are missing were fetched into it."""
        missing = {f.file_hash: f for target, f in files if f.size and not self._cache.link(f.file_hash, target)}
        self._fetch(hub, list(missing.values()))
        for target, file in files:
            if not file.size:
                self._own(target, file, empty=True)
            elif file.file_hash in missing and not self._cache.link(file.file_hash, target):
                raise Unavailable("the cache of this node is too small for what its jobs read at once")

    def _fetch(self, hub: Hub, files: Sequence[BucketFile]) -> None:
        wanted = [(self._cache.temporary(file.file_hash), file.file_hash, file.size) for file in files]
        try:
            self._transfer.download(hub, wanted)
            for temporary, file_hash, _ in wanted:
                self._cache.add(file_hash, temporary)
        finally:
            for temporary, _, _ in wanted:
                if os.path.exists(temporary):
                    os.unlink(temporary)

    def _copy(self, hub: Hub, files: Sequence[tuple[str, BucketFile]]) -> None:
        """Give the job files of its own, which it may change."""
        missing = [(t, f.file_hash, f.size) for t, f in files if f.size and not self._cache.copy(f.file_hash, t)]
        self._transfer.download(hub, missing)
        for target, file in files:
            self._own(target, file, empty=not file.size)

    def _own(self, target: str, file: BucketFile, *, empty: bool) -> None:
        if empty:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        os.chmod(target, 0o666)
        if self._owner is not None:
            os.chown(target, self._owner, self._owner)
        os.utime(target, ns=(file.mtime_ns, file.mtime_ns))

    def _make_parents(self, path: str, made: set[str]) -> None:
        if path not in made:
            self._make_parents(os.path.dirname(path), made)
            self._make(path)
            made.add(path)

    def _make(self, path: str) -> None:
        os.mkdir(path, 0o777)
        os.chmod(path, 0o777)  # whatever user of its image a job runs as: the volume is the job's
        if self._owner is not None:
            os.chown(path, self._owner, self._owner)


def _inside(path: str, folder: str) -> str:
    return path[len(folder) + 1 :] if folder else path


def _fitting(files: Sequence[tuple[str, BucketFile]]) -> tuple[list[tuple[str, BucketFile]], list[str]]:
    """Leave out what a file system cannot show: a file where others have a folder, and names that are too long."""
    folders: set[str] = set()
    for path, _ in files:
        parent = os.path.dirname(path)
        while parent and parent not in folders:
            folders.add(parent)
            parent = os.path.dirname(parent)
    fitting: list[tuple[str, BucketFile]] = []
    notes: list[str] = []
    for path, file in files:
        if not path:
            continue  # a file with the path of the mounted folder itself
        if path in folders:
            notes.append(f"{path!r} is not shown: it is a file of the bucket, and a folder as well")
        elif any(len(name.encode()) > _LONGEST_NAME_BYTES for name in path.split("/")):
            notes.append(f"{path[:200]!r} is not shown: its name is longer than a file system allows")
        else:
            fitting.append((path, file))
    return fitting, notes
