"""Content that this node has already, by hash: shared by all jobs, bounded in size, oldest use goes first.

A file appears complete, verified and never to change, by a rename; so a crash leaves at worst a temporary file. Files
that jobs have linked stay theirs when they leave the cache. Who may read what is decided before: a job gets files by
the listing of its bucket.
"""

import fcntl
import os
import time
from collections.abc import Iterator

_LOCK = ".lock"
_TEMPORARY = "new-"
_STALE_SECONDS = 24 * 3600.0


class ContentCache:
    """The cache of one node."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        os.makedirs(path, 0o700, exist_ok=True)

    def link(self, file_hash: str, target: str) -> bool:
        """Make `target` the file of that hash, which nobody may write then; False if it is not here."""
        source = self._file(file_hash)
        try:
            os.utime(source)
            os.link(source, target)
        except FileNotFoundError:
            return False
        except OSError:  # too many links, or another file system
            return self.copy(file_hash, target)
        return True

    def copy(self, file_hash: str, target: str) -> bool:
        """Make `target` a file of its own with that content; False if it is not here."""
        try:
            source = os.open(self._file(file_hash), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            os.utime(source)
            made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                while os.copy_file_range(source, made, 1 << 30):  # shares blocks where the file system can
                    pass
            finally:
                os.close(made)
        finally:
            os.close(source)
        return True

    def temporary(self, file_hash: str) -> str:
        """Return where to put content before it is added."""
        return os.path.join(self._path, f"{_TEMPORARY}{file_hash}-{os.getpid()}")

    def add(self, file_hash: str, temporary: str) -> None:
        """Take over a verified file."""
        os.chmod(temporary, 0o444)
        target = self._file(file_hash)
        os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
        os.rename(temporary, target)

    def trim(self) -> None:
        """Remove what was not used for longest until the rest fits, and what crashes left. Nobody waits for it."""
        lock = os.open(os.path.join(self._path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            self._trim()
        finally:
            os.close(lock)

    def _trim(self) -> None:
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            os.unlink(path)
            excess -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield (last use, size, path)."""
        for folder in os.scandir(self._path):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    found = entry.stat(follow_symlinks=False)
                    yield found.st_mtime, found.st_size, entry.path
            elif folder.name.startswith(_TEMPORARY):
                try:
                    if folder.stat().st_mtime < time.time() - _STALE_SECONDS:
                        os.unlink(folder.path)
                except FileNotFoundError:
                    continue

    def _file(self, file_hash: str) -> str:
        return os.path.join(self._path, file_hash[:2], file_hash)
