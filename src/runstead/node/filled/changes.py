"""What a job has changed in a volume: files that are new, changed or gone, found by looking at all of them.

The server looks too, to learn whether a program has to save anything; so nothing here moves content.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runstead.model.buckets import path_problem
from runstead.node.filled.folder import Folder, KnownFile

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
