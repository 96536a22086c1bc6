"""Ends an attempt that is not wanted any more and gives back all that it held, whoever is still alive."""

import errno
import json
import os
import signal
import socket
import stat
import time

from runstead.node import cgroups, framing, places, processes, rundir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_GRACE_SECONDS = 3.0  # for a supervisor to end the job and itself
_END_SECONDS = 10.0
_DEPTH = 64


def tell(path: str, order: bytes) -> bool:
    """Send an order to the supervisor of an attempt; False when there is none."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.settimeout(1)
            sender.sendto(order, framing.socket_address(folder, path, rundir.CONTROL))
        except OSError:
            return False
        finally:
            os.close(folder)
    return True


def remove(data_dir: str, name: str) -> None:
    """Leave nothing of the attempt but its log. May be called again after any failure."""
    path = os.path.join(rundir.attempts_path(data_dir), name)
    facts = rundir.read_json(os.path.join(path, rundir.ATTEMPT))
    if not os.path.isdir(path):
        return
    _end(path, facts)
    if facts is not None:
        _empty(cgroups.Group(facts["cgroups"], facts["group"]), name, plain=facts["isolation"] == "none")
        shared = os.path.join(places.owner_path(data_dir, str(facts["namespace"])), "env")
        delete_tree(os.path.join(shared, "venvs", name))
    # What says how to give things back goes last.
    try:
        for entry in os.listdir(path):
            if entry not in (rundir.ATTEMPT, rundir.LOCK):
                delete_tree(os.path.join(path, entry))
    except FileNotFoundError:  # somebody else removes it as well
        pass
    delete_tree(path)


def _end(path: str, facts: "dict[str, Any] | None") -> None:
    """Return when the supervisor and process 1 are gone."""
    if not rundir.is_alive(path):
        return
    tell(path, json.dumps({"op": "kill"}).encode())
    if _gone_within(path, _GRACE_SECONDS):
        return
    if facts is not None and facts.get("shared"):  # others of its attempts are not to die for this one
        cgroups.Group(facts["cgroups"], facts["group"]).kill()
        if _gone_within(path, _GRACE_SECONDS):
            return
    supervisor = facts.get("supervisor") if facts else None
    if isinstance(supervisor, int) and processes.is_ours(supervisor):
        try:
            os.kill(supervisor, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if not _gone_within(path, _END_SECONDS):
        raise OSError(errno.EBUSY, "its processes do not end", path)


def _gone_within(path: str, seconds: float) -> bool:
    until = time.monotonic() + seconds
    pause = 0.0005
    while rundir.is_alive(path):
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def _empty(group: cgroups.Group, name: str, *, plain: bool) -> None:
    """Kill what outlived its supervisor and remove the control groups."""
    until = time.monotonic() + _END_SECONDS
    while time.monotonic() < until:
        left = group.kill()
        strays = processes.marked(name) if plain else []
        for pid in strays:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        if not left and not strays and group.remove():
            return
        time.sleep(0.005)
    raise OSError(errno.EBUSY, "its control groups cannot be removed", name)


def delete_tree(path: str) -> None:
    """Delete a directory, file or link with all below it; nothing there is no error.

    Never follows a link, not even where other jobs put links in the way meanwhile: they can write beside it.
    """
    parent, name = os.path.split(path)
    try:
        folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        delete_in(folder, name)
    finally:
        os.close(folder)


def delete_in(folder: int, name: str) -> None:
    """Do the same with an entry of an open directory."""
    waiting = [name]
    while waiting:
        _delete(folder, waiting.pop(), 0, folder, waiting)


def _delete(folder: int, name: str, depth: int, top: int, waiting: list[str]) -> None:
    """Delete an entry of an open directory; what lies very deep is moved up to `top`, to be deleted later."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            return
    except FileNotFoundError:
        return
    if depth >= _DEPTH:
        moved = f".deep-{os.urandom(8).hex()}"
        os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=top)
        waiting.append(moved)
        return
    try:
        inner = _open_folder(folder, name)
    except FileNotFoundError:
        return
    try:
        with os.scandir(inner) as entries:
            names = [entry.name for entry in entries]
        for entry in names:
            _delete(inner, entry, depth + 1, top, waiting)
    finally:
        os.close(inner)
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _open_folder(folder: int, name: str) -> int:
    """Open a directory to empty it, also one that its owner closed to himself."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        found = os.open(name, flags, dir_fd=folder)
    except PermissionError:
        _allow(folder, name)
        return os.open(name, flags, dir_fd=folder)
    if os.geteuid() != 0 and not os.fstat(found).st_mode & stat.S_IWUSR:
        os.fchmod(found, 0o700)
    return found


def _allow(folder: int, name: str) -> None:
    """Make a directory accessible, and surely that and not what a link leads to."""
    if not hasattr(os, "O_PATH"):
        os.chmod(name, 0o700, dir_fd=folder, follow_symlinks=False)
        return
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISDIR(os.fstat(found).st_mode):
            os.chmod(f"/proc/self/fd/{found}", 0o700)
    finally:
        os.close(found)
