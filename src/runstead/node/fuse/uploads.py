"""Carries what is intended into the bucket, behind whoever wrote it: one thread per mount."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runstead.node.fuse.files import Files
from runstead.node.fuse.journal import Intent, Journal
from runstead.node.fuse.refusals import Refusals
from runstead.node.fuse.reserve import Reserve
from runstead.node.fuse.source import EMPTY, Change, Content
from runstead.node.fuse.staging import Staging
from runstead.node.fuse.tree import Tree
from runstead.node.fuse.web import Refused, Transient
from runstead.node.fuse.written import Written

_QUIET_SECONDS = 0.05  # without another change, and what there is is carried
_MOST_GATHER_SECONDS = 0.5  # of a change that others follow: many small files are one upload
_MOST_CHANGES = 1000
_MOST_BYTES = 512 << 20  # of one upload: what was closed is not to wait long for what is large
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 10.0
_MILLISECOND = 1_000_000

Upload = Callable[[list[str]], "list[tuple[bytes, int]]"]
Apply = Callable[[Sequence[Change]], "list[tuple[str, str]]"]


class Standing(NamedTuple):
    """How far a mount's uploads are."""

    pending: int
    open: int
    files: int  # that are in the bucket because of this mount
    bytes: int
    failure: str | None  # of the last try
    notes: "list[str]"  # what was refused, for the log of the job


class Uploads:
    """The uploads of one mount."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        staging: Staging,
        files: Files,
        lock: "threading.RLock",
        upload: Upload,
        apply: Apply,
        written: Written,
        reserve: Reserve,
        refusals: Refusals,
        warm: Callable[[], None],
    ) -> None:
        self._tree = tree
        self._journal = journal
        self._staging = staging
        self._files = files
        self._lock = lock
        self._upload = upload
        self._apply = apply
        self._wake = threading.Event()
        self._stopped = False
        self._rest_seconds = 0.0
        self._failure: str | None = None
        self._urgent = False
        self._written = written
        self._reserve = reserve
        self._refusals = refusals
        self._warm = warm
        self._moved = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, after_seconds: float = 0.0) -> None:
        """Begin, not at once if another daemon has just died: what it had sent is to arrive before what we send."""
        self._rest_seconds = after_seconds
        self._thread = threading.Thread(target=self._run, name="uploads", daemon=True)
        self._thread.start()
        self.wake()

    def stop(self) -> None:
        """End, and leave what is not in the bucket."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def standing(self) -> Standing:
        """Say how far it is."""
        with self._lock:
            pending = len(self._journal.intents)
            opened = sum(intent.open for intent in self._journal.intents.values())
            failures = [i.failure for i in self._journal.intents.values() if i.failure is not None]
        return Standing(
            pending,
            opened,
            self._written.files,
            self._written.bytes,
            failures[0] if failures else self._failure,
            self._refusals.notes(),
        )

    def settle(self, until: float) -> Standing:
        """Return when nothing is pending, or it is too late; what is still open by then counts as closed."""
        grace = min(until, time.monotonic() + 2.0)
        self._urgent = True
        self._wake.set()
        while True:
            with self._moved:
                standing = self.standing()
                if standing.pending == 0 or time.monotonic() >= until or (self._all_refused() and not standing.open):
                    return standing
                self._moved.wait(0.1)
            if time.monotonic() > grace and standing.open:
                self.close_all()

    def close_all(self) -> None:
        """Take files that are still open for writing as they are."""
        with self._lock:
            for intent in list(self._journal.intents.values()):
                if intent.open and intent.stage is not None:
                    self._journal.stage(intent.path, intent.stage, is_open=False)
        self._wake.set()

    def _all_refused(self) -> bool:
        with self._lock:
            return all(intent.failure is not None for intent in self._journal.intents.values())

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        time.sleep(self._rest_seconds)
        while not self._stopped:
            self._wake.wait()
            self._wake.clear()
            try:
                self._gather()
                while not self._stopped and self._carry():
                    pause = _FIRST_PAUSE
                    if self._journal.intents:
                        self._gather()
                if self._journal.intents:  # of files that are still being written
                    self._warm()
                self._failure = None
            except (Transient, Refused, OSError) as error:
                self._failure = error.strerror or str(error)
                if os.statvfs(self._staging.directory).f_bavail == 0 or self._urgent:
                    self._reserve.give_up()
                self._keep_safe()
                self._wake.wait(0 if self._stopped else pause)
                if not self._stopped:
                    time.sleep(min(pause, 1.0 if self._urgent else pause))
                pause = min(pause * 2, 1.0 if self._urgent else _LONGEST_PAUSE)
                self._wake.set()
            with self._moved:
                self._moved.notify_all()

    def _gather(self) -> None:
        """Wait for a moment in which nothing is changed, but not long."""
        until = time.monotonic() + _MOST_GATHER_SECONDS
        before = -1
        while not self._urgent and not self._stopped and time.monotonic() < until and self._journal.changes != before:
            before = self._journal.changes
            time.sleep(_QUIET_SECONDS)

    def _carry(self) -> bool:
        """Carry some intents into the bucket; False when there are none."""
        batch = self._choose()
        if not batch:
            return False
        stages: dict[str, Content] = {}
        paths = [(i, self._staging.path(i.stage)) for i in batch if i.stage is not None]
        filled: list[tuple[Intent, str, int]] = []
        for intent, path in paths:
            assert intent.stage is not None
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                continue  # removed or carried meanwhile
            mtime_ns = stat.st_mtime_ns // _MILLISECOND * _MILLISECOND
            if stat.st_size == 0:
                stages[intent.stage] = Content(EMPTY, 0, mtime_ns)
            else:
                filled.append((intent, path, mtime_ns))
        if filled:
            results = self._upload([path for _, path, _ in filled])
            for (intent, _, mtime_ns), (name, size) in zip(filled, results, strict=True):
                assert intent.stage is not None
                stages[intent.stage] = Content(name, size, mtime_ns)
        self._settle(batch, stages)
        return True

    def _choose(self) -> list[Intent]:
        found: list[Intent] = []
        size = 0
        with self._lock:
            for intent in sorted(self._journal.intents.values(), key=lambda i: i.number):
                if intent.open or intent.failure is not None:
                    continue
                if intent.stage is not None:
                    try:
                        size += os.stat(self._staging.path(intent.stage)).st_size
                    except FileNotFoundError:
                        pass
                if found and (size > _MOST_BYTES or len(found) >= _MOST_CHANGES):
                    break
                found.append(intent)
        return found

    def _settle(self, batch: list[Intent], stages: "dict[str, Content]") -> None:
        """Tell the bucket, but not of what was changed while it was uploaded."""
        changes: list[Change] = []
        current: list[tuple[Intent, Content | None]] = []
        same: set[str] = set()
        with self._lock:
            for intent in batch:
                if self._journal.get(intent.path) is not intent:
                    continue
                content = stages.get(intent.stage) if intent.stage is not None else intent.content
                if content is None and not intent.is_absence:
                    intent.failure = "the staged file has vanished"
                    continue
                intent.tried = True
                current.append((intent, content))
                if intent.stage is not None and content is not None and self._tree.has(intent.path, content):
                    same.add(intent.path)  # written anew, and what it was
                else:
                    changes.append(Change(intent.path, content))
                    intent.sent = (*intent.sent, content.file_hash if content is not None else None)
        refused = dict(self._apply(changes)) if changes else {}
        with self._lock:
            done = [(i.path, content) for i, content in current if i.path not in refused and i.path not in same]
            self._written.add(done)
            for intent, content in current:
                reason = refused.get(intent.path)
                if reason is not None:
                    intent.failure = f"{intent.path}: {reason}"
                    continue
                self._tree.settled(intent.path, content)
                if self._journal.get(intent.path) is intent:
                    self._journal.forget(intent.path)
                    if intent.stage is not None and content is not None:
                        self._files.uploaded(self._tree.at(intent.path), intent.stage, content)

    def _keep_safe(self) -> None:
        """The bucket cannot be reached: make what is here survive a loss of power."""
        with self._lock:
            stages = [i.stage for i in self._journal.intents.values() if i.stage is not None and not i.open]
        for stage in stages[:_MOST_CHANGES]:
            try:
                fd = os.open(self._staging.path(stage), os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        with self._lock:
            self._journal.sync()
