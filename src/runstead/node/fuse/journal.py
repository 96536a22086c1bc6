"""What a mount wants its bucket to become, kept so that it survives whoever wanted it.

One intent per path: this staged file, that content, or nothing. A later one for the same path replaces it, so
nothing has to be carried out in vain. Each change is one line of a file, written with one call: a process that is
killed leaves whole lines, and half of a last one after a loss of power is left out.

    ["o", number, path, stage]               the staged file is open for writing
    ["c", number, path, stage]               it was closed: its bytes are what the path shall have
    ["p", number, path, hash, size, mtime]   a content that the store has
    ["d", number, path]                      nothing
    ["k", number, path]                      the bucket is as it was wanted, or it is not wanted any more
"""

import errno
import json
import os

from runstead.node.fuse.reserve import Reserve
from runstead.node.fuse.source import Content

_COMPACT_LINES = 20_000


class Intent:
    """What one path shall be."""

    __slots__ = ("content", "failure", "number", "open", "path", "sent", "stage", "tried")

    def __init__(self, number: int, path: str, stage: str | None, content: Content | None, *, is_open: bool) -> None:
        self.number = number  # grows with every change: an upload of an older number is of no use
        self.path = path
        self.stage = stage
        self.content = content
        self.open = is_open  # being written: not to be uploaded yet
        self.tried = False  # the bucket may have it, or may have had it, already
        self.sent: tuple[
            bytes | None, ...
        ] = ()  # hashes that the bucket was told of the path meanwhile, None for nothing
        self.failure: str | None = None  # why the bucket does not take it

    @property
    def is_absence(self) -> bool:
        """Whether the path shall have nothing."""
        return self.stage is None and self.content is None


class Journal:
    """The intents of one mount. Not safe for threads: its owner has a lock."""

    def __init__(self, path: str, reserve: Reserve) -> None:
        self._path = path
        self._reserve = reserve
        self._behind = False  # the file lacks something, because the disk was full
        self._number = 0
        self._lines = 0
        self.intents: dict[str, Intent] = {}
        self._folders: dict[str, dict[str, Intent]] = {}
        self._below: dict[str, list[int]] = {}  # per folder: how many paths below shall be something, and nothing
        self._stages: dict[str, str] = {}  # the path that has a staged file
        self._subfolders: dict[str, dict[str, int]] = {}  # per folder: those below with anything intended
        for intent in read(path):
            self._number = max(self._number, intent.number)
            self._keep(intent)
        self._finish_renames()
        self._fd = -1
        self._rewrite()

    @property
    def changes(self) -> int:
        """How often anything was intended."""
        return self._number

    def get(self, path: str) -> Intent | None:
        """Return what is intended for a path."""
        return self.intents.get(path)

    def folder(self, path: str) -> "dict[str, Intent]":
        """Return what is intended for the names of one folder."""
        return self._folders.get(path, _NOTHING)

    def below(self, path: str) -> "list[Intent]":
        """Return what is intended for all that is below a folder."""
        prefix = path + "/" if path else ""
        return [intent for name, intent in self.intents.items() if name.startswith(prefix)]

    def needs(self, stage: str) -> str | None:
        """Return the path that a staged file is for."""
        return self._stages.get(stage)

    def subfolders(self, path: str) -> "list[str]":
        """Return the names of the folders in a folder that will have files."""
        names = self._subfolders.get(path)
        if names is None:
            return []
        prefix = path + "/" if path else ""
        return [name for name in names if self._below[prefix + name][0]]

    def makes_folder(self, path: str) -> bool:
        """Whether a folder will have files that are intended."""
        return self._below.get(path, _NONE)[0] > 0

    def intends_below(self, path: str) -> bool:
        """Whether anything is intended below a folder, be it that files shall be gone."""
        return path in self._below

    def stage(self, path: str, stage: str, *, is_open: bool) -> Intent:
        """A staged file is what the path shall have, once it is closed."""
        intent = self._add(path, stage, None, is_open=is_open)
        self._write(["o" if is_open else "c", intent.number, path, stage])
        return intent

    def put(self, path: str, content: Content) -> Intent:
        """A content is what the path shall have."""
        intent = self._add(path, None, content, is_open=False)
        self._write(["p", intent.number, path, content.file_hash.hex(), content.size, content.mtime_ns])
        return intent

    def remove(self, path: str) -> Intent:
        """The path shall have nothing."""
        intent = self._add(path, None, None, is_open=False)
        intent.tried = True
        self._write(["d", intent.number, path])
        return intent

    def forget(self, path: str) -> None:
        """Nothing is intended for the path any more."""
        intent = self.intents.pop(path, None)
        if intent is None:
            return
        self._count(intent, -1)
        parent, _, name = path.rpartition("/")
        folder = self._folders[parent]
        del folder[name]
        if not folder:
            del self._folders[parent]
        self._write(["k", intent.number, path])
        if self._lines > _COMPACT_LINES and self._lines > 4 * len(self.intents):
            self._rewrite()

    def sync(self) -> None:
        """Return when all of it survives a loss of power."""
        os.fdatasync(self._fd)

    def _add(self, path: str, stage: str | None, content: Content | None, *, is_open: bool) -> Intent:
        self._number += 1
        intent = Intent(self._number, path, stage, content, is_open=is_open)
        before = self.intents.get(path)
        if before is not None:
            intent.tried, intent.sent = before.tried, before.sent
        self._keep(intent)
        return intent

    def _keep(self, intent: Intent) -> None:
        before = self.intents.get(intent.path)
        if before is not None:
            self._count(before, -1)
        self.intents[intent.path] = intent
        self._count(intent, 1)
        parent, _, name = intent.path.rpartition("/")
        self._folders.setdefault(parent, {})[name] = intent

    def _finish_renames(self) -> None:
        """One staged file at two paths: whoever renamed it died before its old path was noted to have nothing."""
        latest: dict[str, Intent] = {}
        for intent in sorted(self.intents.values(), key=lambda intent: intent.number):
            if intent.stage is None:
                continue
            before = latest.get(intent.stage)
            if before is not None:
                self._keep(Intent(before.number, before.path, None, None, is_open=False))
                self.intents[before.path].tried = True
            latest[intent.stage] = intent
            self._stages[intent.stage] = intent.path

    def _count(self, intent: Intent, change: int) -> None:
        if intent.stage is not None:
            if change > 0:
                self._stages[intent.stage] = intent.path
            elif self._stages.get(intent.stage) == intent.path:
                del self._stages[intent.stage]
        path, _, _ = intent.path.rpartition("/")
        while path:
            counts = self._below.setdefault(path, [0, 0])
            counts[intent.is_absence] += change
            parent, _, name = path.rpartition("/")
            names = self._subfolders.setdefault(parent, {})
            names[name] = names.get(name, 0) + change
            if names[name] == 0:
                del names[name], self._below[path]
                if not names:
                    del self._subfolders[parent]
            path = parent

    def _write(self, record: "list[object]") -> None:
        """Write a line. On a full disk only what begins something new is refused."""
        self._lines += 1
        data = json.dumps(record).encode() + b"\n"
        try:
            self._append(data)
        except OSError:
            self._reserve.give_up()
            try:
                self._append(b"\n" + data)  # half a line may be there
            except OSError:
                if record[0] == "o":
                    raise
                self._behind = True
        if self._behind:
            try:
                self._behind = False
                self._rewrite()
            except OSError:
                self._behind = True

    def _append(self, data: bytes) -> None:
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full", self._path)

    def _rewrite(self) -> None:
        """Begin a new file with what is intended now."""
        fresh = self._path + ".tmp"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(json.dumps(_record(intent)).encode() + b"\n" for intent in self.intents.values())
            while data:
                data = data[os.write(fd, data) :]
            os.fdatasync(fd)
            os.rename(fresh, self._path)
        except BaseException:
            os.close(fd)
            raise
        before, self._fd, self._lines = self._fd, fd, len(self.intents)
        if before >= 0:
            os.close(before)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


_NOTHING: "dict[str, Intent]" = {}
_NONE = [0, 0]


def _record(intent: Intent) -> "list[object]":
    if intent.stage is not None:
        return ["o" if intent.open else "c", intent.number, intent.path, intent.stage]
    if intent.content is not None:
        content = intent.content
        return ["p", intent.number, intent.path, content.file_hash.hex(), content.size, content.mtime_ns]
    return ["d", intent.number, intent.path]


def read(path: str) -> "list[Intent]":
    """Return what is intended in the journal at a path, be it there or not."""
    found: dict[str, Intent] = {}
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            kind, number, name, *rest = json.loads(line)
        except ValueError:
            continue  # cut short by a loss of power
        if kind == "k":
            found.pop(name, None)
        elif kind in ("o", "c"):
            found[name] = Intent(number, name, rest[0], None, is_open=kind == "o")
        elif kind == "p":
            content = Content(bytes.fromhex(rest[0]), rest[1], rest[2])
            found[name] = Intent(number, name, None, content, is_open=False)
        else:
            found[name] = Intent(number, name, None, None, is_open=False)
        if name in found:
            found[name].tried = True
    return list(found.values())
