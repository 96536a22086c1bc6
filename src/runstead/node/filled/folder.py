"""The folder of one attempt's volumes on the node, and what is remembered of the files in it.

    <data_dir>/node/volumes/<job_id>-<attempt>/
        lock            flock'ed by the program that works here; a second one waits
        prepared.json   the volumes; appears last, when all of them are complete
        <index>/        the files of a volume, as the job sees them
        <index>.known   what of them is in the bucket: a journal of JSON lines, a later one wins
        room            takes room on the disk until files are saved
        counted.json    how many files and bytes have come into buckets so far
        saved.json      what was saved, once everything is in the buckets
        xet/            what hf_xet keeps while it works

What could not be saved when the job ended is moved, as it is, to <data_dir>/node/unsaved/ and stays there until
`runstead job recover` has saved it.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from runstead.node import rundir

_PREPARED = "prepared.json"
_SAVED = "saved.json"
_COUNTED = "counted.json"
_ROOM = "room"
_ROOM_BYTES = 8 << 20
_LOCK = "lock"
_XET = "xet"


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that is in the bucket, and how it looked on the node then."""

    file_hash: str
    size: int
    mtime_ns: int
    ctime_ns: int  # changes with every change, and nobody can set it
    inode: int

    @staticmethod
    def of(file_hash: str, found: os.stat_result) -> "KnownFile":
        """Return what to remember of a file."""
        return KnownFile(file_hash, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class Folder:
    """The folder of one attempt."""

    def __init__(self, path: str) -> None:
        self.path = path

    def files_path(self, index: int) -> str:
        """Return where the files of a volume are."""
        return os.path.join(self.path, str(index))

    @property
    def xet_path(self) -> str:
        """Where hf_xet may keep what it needs."""
        return os.path.join(self.path, _XET)

    def lock(self) -> int:
        """Wait until nobody else works here; the lock ends with the returned file descriptor."""
        os.makedirs(self.path, 0o700, exist_ok=True)
        fd = os.open(os.path.join(self.path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def is_there(self) -> bool:
        """Say whether somebody has worked here."""
        return os.path.exists(os.path.join(self.path, _LOCK))

    def prepared(self) -> list[dict[str, Any]] | None:
        """Return the volumes as they were prepared; None when they are not, or not all."""
        found = rundir.read_json(os.path.join(self.path, _PREPARED))
        return None if found is None else found["volumes"]

    def set_prepared(self, volumes: Iterable[Mapping[str, Any]], notes: Iterable[str]) -> None:
        """Note that all volumes are complete, but for what the notes say."""
        found = {"volumes": list(volumes), "notes": list(notes)}
        rundir.write_json(os.path.join(self.path, _PREPARED), found, durable=True)

    def prepared_notes(self) -> list[str]:
        """Return what of the volumes could not be shown."""
        found = rundir.read_json(os.path.join(self.path, _PREPARED))
        return [] if found is None else found["notes"]

    def saved(self) -> dict[str, Any] | None:
        """Return what was saved; None as long as there may be something that is not."""
        return rundir.read_json(os.path.join(self.path, _SAVED))

    def set_saved(self, result: Mapping[str, object]) -> None:
        """Note that everything is in the buckets."""
        rundir.write_json(os.path.join(self.path, _SAVED), result, durable=True)

    def set_room_aside(self) -> None:
        """Take some room on the disk, so that saving works also when the job has filled it."""
        fd = os.open(os.path.join(self.path, _ROOM), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _ROOM_BYTES)
        finally:
            os.close(fd)

    def use_room(self) -> None:
        """Give the room back, for what has to be written while files are saved."""
        try:
            os.unlink(os.path.join(self.path, _ROOM))
        except FileNotFoundError:
            return

    def counted(self) -> dict[str, int]:
        """Return what has come into buckets so far, while there may be more."""
        return rundir.read_json(os.path.join(self.path, _COUNTED)) or {"files": 0, "bytes": 0}

    def set_counted(self, counted: Mapping[str, int]) -> None:
        """Note what has come into buckets so far."""
        rundir.write_json(os.path.join(self.path, _COUNTED), counted)

    def known(self, index: int) -> dict[str, KnownFile]:
        """Return the files of a volume that are in its bucket. A line that a crash cut short is left out."""
        found: dict[str, KnownFile] = {}
        for path, facts in self._lines(index):
            if facts is None:
                found.pop(path, None)
            else:
                found[path] = KnownFile(*facts)
        return found

    def remember(self, index: int, files: Mapping[str, KnownFile | None], *, anew: bool = False) -> None:
        """Note what is in the bucket now (None: no longer); durable when this returns."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if anew else os.O_APPEND)
        with os.fdopen(os.open(self._known_path(index), flags, 0o600), "wb") as file:
            for path, known in files.items():
                # A line break first: what a crash left of a line before must not swallow this one.
                line = json.dumps([path, None if known is None else astuple(known)])
                file.write(b"\n" + line.encode())
            file.write(b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self, index: int) -> Iterator[tuple[str, list[Any] | None]]:
        try:
            with open(self._known_path(index), "rb") as file:
                for line in file:
                    try:
                        path, facts = json.loads(line)
                    except ValueError:
                        continue
                    yield path, facts
        except FileNotFoundError:
            return

    def _known_path(self, index: int) -> str:
        return os.path.join(self.path, f"{index}.known")
