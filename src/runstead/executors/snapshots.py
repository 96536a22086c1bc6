"""Snapshots: what the jobs of a namespace wrote over their images, kept for others to begin with.

    <data_dir>/node/snapshots/<name>/     the top of an overlay, as it was, with the machine's ids
    <data_dir>/node/snapshots/.new-*      one in the making

A snapshot is a copy, so it costs what was written and not what the image has, and whoever begins with it shares it.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp

from runstead.executors.attempts import Attempts
from runstead.model.errors import BackendFailure, Conflict, Invalid, NotRunning
from runstead.node import removal, rundir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_UPPER, _WORK = "upper", "work"
# One that was just made is not in use yet.
_YOUNG_SECONDS = 600.0


class Snapshots:
    """The snapshots of one data directory. Every method blocks."""

    def __init__(self, node: Path, attempts: Attempts) -> None:
        self._folder = node / "snapshots"
        self._attempts = attempts

    def take(self, attempt: str, name: str) -> None:
        """Copy what a running attempt wrote. Raises NotRunning, Conflict, BackendFailure."""
        target = self._path(name)
        source = self._top(attempt)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fresh = Path(mkdtemp(prefix=".new-", dir=self._folder))
        try:
            command = ["cp", "-a", "--reflink=auto", "-T", str(source), str(fresh / _UPPER)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            # What a program deletes while it is copied is missing, and no failure.
            complaints = [line for line in done.stderr.splitlines() if "No such file" not in line]
            if done.returncode and (complaints or not (fresh / _UPPER).is_dir()):
                raise BackendFailure(f"the files could not be copied: {'; '.join(complaints[:3]) or done.stderr[:300]}")
            if target.exists():
                raise Conflict(f"there is a snapshot of that name: {name}")
            (fresh / _UPPER).rename(target)
            os.utime(target)  # when it was made; the copy has the time of the source
        finally:
            removal.delete_tree(str(fresh))

    def find(self, name: str) -> Path:
        """Return where a snapshot is. Raises Invalid when it is gone."""
        path = self._path(name)
        if not os.path.isdir(path):  # noqa: PTH112 - for each attempt that starts, and less than half as long
            raise Invalid(f"the files that this sandbox was to begin with are gone: {name}")
        return path

    def names(self) -> list[str]:
        """Return the names of those that are not just made."""
        now = time.time()
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []
        old = [entry for entry in entries if now - entry.stat(follow_symlinks=False).st_mtime > _YOUNG_SECONDS]
        for entry in old:
            if entry.name.startswith("."):  # somebody died over it
                removal.delete_tree(entry.path)
        return sorted(entry.name for entry in old if not entry.name.startswith("."))

    def drop(self, name: str) -> None:
        """Delete one. Idempotent."""
        path = self._path(name)
        if path.is_dir():
            gone = path.with_name(f".old-{name}")
            shutil.move(path, gone)
            removal.delete_tree(str(gone))

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise Invalid(f"not the name of a snapshot: {name[:100]!r}")
        return self._folder / name

    def _top(self, attempt: str) -> Path:
        """Return the directory to which a running attempt writes."""
        if not self._attempts.exists(attempt) or not self._attempts.alive(attempt):
            raise NotRunning(f"the attempt is over: {attempt}")
        own = self._attempts.path(attempt) / rundir.FILES
        if (own / _UPPER).is_dir():
            return own / _UPPER
        # Else it is on a disk of its own, which is mounted nowhere that we see; its supervisor holds it.
        holder = Path(f"/proc/{self._attempts.facts(attempt).get('supervisor')}/fd")
        try:
            for place in holder.iterdir():
                if (place / _UPPER).is_dir() and (place / _WORK).is_dir():
                    return place / _UPPER
        except OSError as error:
            raise NotRunning(f"the attempt is over: {attempt}") from error
        raise BackendFailure(f"it cannot be found out where the attempt writes: {attempt}")
