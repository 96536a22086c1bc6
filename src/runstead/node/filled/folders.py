"""The folders of all attempts with volumes on a node: found, given back, kept."""

import os
from typing import Any

from runstead.node import removal, rundir
from runstead.node.filled.changes import nothing_to_save
from runstead.node.filled.folder import Folder

_TRASH = ".trash-"


class Folders:
    """Those below one data directory. What could not be saved lies apart from what jobs use."""

    def __init__(self, data_dir: str) -> None:
        self._node = os.path.join(data_dir, "node")
        self._used = os.path.join(self._node, "volumes")
        self._unsaved = os.path.join(self._node, "unsaved")

    @property
    def cache_path(self) -> str:
        """Where content is that this node has already."""
        return os.path.join(self._node, "content")

    @property
    def words_path(self) -> str:
        """Where programs say what went wrong, for operators."""
        return os.path.join(self._node, "volumes.log")

    def open(self) -> None:
        """Make what is missing, and finish what was begun to be removed."""
        for path in (self._used, self._unsaved):
            os.makedirs(path, 0o700, exist_ok=True)
        for name in os.listdir(self._used):
            if name.startswith(_TRASH):
                removal.delete_tree(os.path.join(self._used, name))

    def folder(self, job_id: str, attempt: int) -> Folder:
        """Return the folder of an attempt, where it is now or shall be."""
        name = rundir.attempt_name(job_id, attempt)
        kept = os.path.join(self._unsaved, name)
        return Folder(kept if os.path.isdir(kept) else os.path.join(self._used, name))

    def has(self, job_id: str, attempt: int) -> bool:
        """Say whether there is a folder of the attempt that was made here."""
        return self.folder(job_id, attempt).is_there()

    def kept_path(self, job_id: str, attempt: int) -> str:
        """Return where the folder is kept, once it is, of which something is in no bucket."""
        return os.path.join(self._unsaved, rundir.attempt_name(job_id, attempt))

    def used(self) -> list[tuple[str, int]]:
        """Return (job_id, attempt) of the attempts that jobs may still use."""
        return _attempts(self._used)

    def unsaved(self) -> list[tuple[str, int]]:
        """Return (job_id, attempt) of the attempts of which something is kept."""
        return _attempts(self._unsaved)

    def saved(self, folder: Folder) -> dict[str, Any] | None:
        """Return what was saved of an attempt that has ended; None when something is in no bucket."""
        return folder.saved() or nothing_to_save(folder)

    def release(self, job_id: str, attempt: int, *, keep_unsaved: bool) -> str | None:
        """Remove a folder; return where it is kept instead, because something in it is in no bucket."""
        folder = self.folder(job_id, attempt)
        if not os.path.isdir(folder.path):
            return None
        if keep_unsaved and self.saved(folder) is None:
            return self._keep(folder, self.kept_path(job_id, attempt))
        # Renamed first: a crash must not leave half a folder that looks whole.
        name = f"{_TRASH}{os.path.basename(folder.path)}-{os.urandom(4).hex()}"
        trash = os.path.join(self._used, name)
        os.rename(folder.path, trash)
        removal.delete_tree(trash)
        return None

    def _keep(self, folder: Folder, target: str) -> str:
        for one in folder.prepared() or ():
            if one["read_only"]:
                removal.delete_tree(folder.files_path(one["index"]))
        removal.delete_tree(folder.xet_path)
        if folder.path != target:
            os.rename(folder.path, target)
        return target


def _attempts(path: str) -> list[tuple[str, int]]:
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    return [parsed for name in names if (parsed := rundir.parse_name(name)) is not None]
