"""Snapshots: what the jobs of a namespace wrote over their images, kept for others to begin with.

    <data_dir>/node/snapshots/<name>/     the top of an overlay, as it was, with the machine's ids
    <data_dir>/node/snapshots/.new-*      one in the making

A snapshot is a copy, so it costs what was written and not what the image has, and whoever begins with it shares it. Of
a job on the machine's own system it is all of the job's own directories, laid out as `node/roots/machine.py` says.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp

import runstead
from runstead.executors.attempts import Attempts
from runstead.model.errors import BackendFailure, Conflict, Invalid, NotRunning
from runstead.node import copying, places, processes, removal, rundir, syscalls
from runstead.node.roots import machine

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_WORK = "work"
# One that was just made is not in use yet.
YOUNG_SECONDS = 600.0
_FEW = 500
_COPY_SECONDS = 540.0  # less: what is older and unfinished was given up


def check_name(name: str) -> None:
    """Raise Invalid for what is no name of a snapshot."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"not the name of a snapshot: {name[:100]!r}")


def gone(name: str) -> Invalid:
    """Return the error of who needs a snapshot that is not there."""
    return Invalid(f"the files that this sandbox was to begin with are gone: {name}")


class Snapshots:
    """The snapshots of one data directory. Every method blocks."""

    def __init__(self, node: Path, attempts: Attempts) -> None:
        self._node = node
        self._folder = node / "snapshots"
        self._attempts = attempts
        self._making: set[str] = set()

    def take(self, attempt: str, name: str) -> None:
        """Copy what a running attempt wrote. Raises NotRunning, Conflict, BackendFailure."""
        target = self._path(name)
        with ExitStack() as held:
            tops = self._tops(attempt, held)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            fresh = Path(mkdtemp(prefix=".new-", dir=self._folder))
            self._making.add(fresh.name)
            held.callback(self._making.discard, fresh.name)
            held.callback(removal.delete_tree, str(fresh))
            new = fresh / machine.UPPER
            if "" not in tops:
                self._lay_out(attempt, new, tops)
            _copy({source: new / below for below, source in tops.items()})
            self._check_running(attempt)  # else files may have been on their way out
            os.utime(new)  # when it was made; the copy has the time of the source
            try:
                new.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                raise Conflict(f"there is a snapshot of that name: {name}") from error

    def find(self, name: str) -> Path:
        """Return where a snapshot is. Raises Invalid when it is gone."""
        path = self._path(name)
        if not os.path.isdir(path):  # noqa: PTH112 - for each attempt that starts, and less than half as long
            raise gone(name)
        return path

    def names(self) -> list[str]:
        """Return the names of those that are not just made."""
        now = time.time()
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            return []
        old = [entry for entry in entries if now - entry.stat(follow_symlinks=False).st_mtime > YOUNG_SECONDS]
        for entry in old:
            if entry.name.startswith(".") and entry.name not in self._making:  # somebody died over it
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
        check_name(name)
        return self._folder / name

    def _tops(self, attempt: str, held: ExitStack) -> dict[str, int]:
        """Open the directories to which a running attempt writes; return where in a snapshot each belongs."""
        self._check_running(attempt)
        own = self._attempts.path(attempt) / rundir.FILES
        try:
            if (own / machine.FOLDERS[-1]).is_dir():  # on the machine's own system
                return self._folders(attempt, own, held) | self._memory(attempt, held)
            if (own / machine.UPPER).is_dir():
                return {"": _open(own / machine.UPPER, held)}
            # Else it is on a disk of its own, which is mounted nowhere that we see; its supervisor holds it, and says
            # by which descriptor, for there may be disks of other attempts.
            holder = Path(f"/proc/{self._attempts.facts(attempt).get('supervisor')}/fd")
            said = rundir.read_json(str(self._attempts.path(attempt) / rundir.STARTED)) or {}
            for place in [holder / str(said["disk"])] if said.get("disk") is not None else holder.iterdir():
                if (place / machine.UPPER).is_dir() and (place / "work").is_dir():
                    return {"": _open(place / machine.UPPER, held)}
        except OSError as error:
            raise NotRunning(f"the attempt is over: {attempt}") from error
        self._check_running(attempt)
        raise BackendFailure(f"it cannot be found out where the attempt writes: {attempt}")

    def _check_running(self, attempt: str) -> None:
        if (self._attempts.path(attempt) / rundir.EXIT).exists() or not self._attempts.alive(attempt):
            raise NotRunning(f"the attempt is over: {attempt}")

    def _folders(self, attempt: str, own: Path, held: ExitStack) -> dict[str, int]:
        """Open the directories of an attempt on the machine's own system, and its Python's."""
        for name in (machine.UPPER, machine.WHOLE):
            if (own / name).is_dir():
                return {"": _open(own / name, held)}
        found = {name: _open(own / name, held) for name in machine.FOLDERS}
        shared = places.owner_path(str(self._node.parent), str(self._attempts.facts(attempt).get("namespace")))
        above = _open(Path(shared, "env"), held)
        try:  # other attempts can write beside it
            above = _open(Path("venvs"), held, above)
            found[f"{machine.PYTHONS}/{attempt}"] = _open(Path(attempt), held, above)
        except OSError:
            pass  # there is none any more; forks get a new one
        return found

    def _memory(self, attempt: str, held: ExitStack) -> dict[str, int]:
        """Open the root directory of an attempt on the machine's own system: there is more in it than we put there."""
        for pid in processes.children(int(self._attempts.facts(attempt)["supervisor"])) or ():
            try:
                with Path(f"/proc/{pid}/status").open("rb") as lines:
                    ids = next((line for line in lines if line.startswith(b"NSpid:")), b"").split()
                if len(ids) > 2 and ids[-1] == b"1":  # the first process inside
                    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    held.callback(os.close, root)
                    return {machine.MEMORY: root}
            except OSError:  # only root may look there
                continue
        return {}

    def _lay_out(self, attempt: str, new: Path, tops: Mapping[str, int]) -> None:
        """Make what several directories are put together in."""
        new.mkdir(mode=0o755)
        pythons = new / machine.PYTHONS
        pythons.mkdir(mode=0o755)
        status = os.fstat(tops[machine.FOLDERS[-1]])
        os.chown(pythons, status.st_uid, status.st_gid)
        (new / machine.FIRST).symlink_to(attempt)


def _open(path: Path, held: ExitStack, above: int | None = None) -> int:
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    held.callback(os.close, opened)
    return opened


def _copy(targets: Mapping[int, Path]) -> None:
    """Copy open directories: here what is done sooner than a process begins, else in a process of its own."""
    left = dict(targets)
    try:
        for source, target in targets.items():
            copying.copy_folder(source, str(target), _FEW)
            del left[source]
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise BackendFailure(f"the files could not be copied: {error.strerror}{where}") from error
    except copying.TooMuch:
        removal.delete_tree(str(next(iter(left.values()))))
        _copy_aside(left)


def _copy_aside(targets: Mapping[int, Path]) -> None:
    source = str(Path(runstead.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {source!r}); from runstead.node.copying import main; main(*sys.argv[1:])"
    pairs = [str(word) for pair in targets.items() for word in pair]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *pairs],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            pass_fds=tuple(targets),
            timeout=_COPY_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendFailure(f"the files could not be copied within {_COPY_SECONDS:.0f} s") from error
    if done.returncode:
        raise BackendFailure(f"the files could not be copied: {done.stderr.strip()[-300:]}")


def overlay_problem(folder: Path) -> str | None:
    """Return why what lies in a directory cannot be the top of an overlay; None when it can. Needs root."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_try_overlay(folder)))
    thread.start()
    thread.join()
    return found[0] if found else "it cannot be tried"


def _try_overlay(folder: Path) -> str | None:
    """Mount one, in a mount namespace of this thread's own: it ends with it."""
    stage = Path(mkdtemp(prefix=".overlay-", dir=folder))
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        for name in ("lower", "upper", "work", "root"):
            (stage / name).mkdir()
        options = f"lowerdir={stage}/lower,upperdir={stage}/upper,workdir={stage}/work,volatile"
        syscalls.mount("overlay", str(stage / "root"), "overlay", syscalls.MS_NODEV, options)
        syscalls.unmount(str(stage / "root"))
    except OSError as error:
        return str(error.strerror)
    finally:
        removal.delete_tree(str(stage))
    return None
