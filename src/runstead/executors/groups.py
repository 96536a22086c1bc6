"""Groups of attempts that reach each other: who is in which, and the hosts files by which they find each other.

Each member has a hosts file of its own, shown in it as /etc/hosts. It is rewritten in place whenever somebody comes or
goes, so names are true at the next look-up, also while no server runs. What is known is kept beside the files.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runstead.model.launches import Membership
from runstead.node import rundir
from runstead.node.request import Container, Request, View

_HOSTS = "/etc/hosts"


@dataclass(frozen=True, slots=True)
class _Member:
    key: str
    names: tuple[str, ...]
    address: str
    own: str  # what is in its hosts file beside the group


class Groups:
    """All groups of one executor. Blocks, shortly; not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: dict[str, _Member] = {}

    def load(self, exists: Callable[[str], bool]) -> None:
        """Find those again that an earlier server knew, if their attempts are still there."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path in self._folder.glob("*.json"):
            name, found = path.stem, rundir.read_json(str(path))
            if found is None or not exists(name):
                self._forget(name)
            else:
                self._members[name] = _Member(found["key"], tuple(found["names"]), found["address"], found["own"])
        for key in {member.key for member in self._members.values()}:
            self._tell(key)

    def join(self, name: str, membership: Membership, address: str, own: str) -> Path:
        """Add an attempt; return its hosts file. `own` is what the file has beside the group."""
        member = _Member(membership.key, membership.names, address, own)
        self._members[name] = member
        said = {"key": member.key, "names": list(member.names), "address": address, "own": own}
        rundir.write_json(str(self._folder / f"{name}.json"), said)
        self._tell(member.key)
        return self._folder / f"{name}.hosts"

    def has(self, name: str) -> bool:
        """Say whether an attempt is in any group."""
        return name in self._members

    def leave(self, name: str) -> bool:
        """Take an attempt out; say whether it was in any group."""
        member = self._members.pop(name, None)
        if member is None:
            return False
        self._forget(name)
        self._tell(member.key)
        return True

    def numbers(self) -> dict[str, int]:
        """Return the group of each address, as a number from 1 on."""
        keys = {key: number for number, key in enumerate(sorted({one.key for one in self._members.values()}), 1)}
        return {member.address: keys[member.key] for member in self._members.values()}

    def _tell(self, key: str) -> None:
        """Write the hosts files of a group."""
        group = [member for member in self._members.values() if member.key == key]
        lines = "".join(f"{member.address} {name}\n" for member in group for name in member.names)
        for name, member in self._members.items():
            if member.key == key:
                _rewrite(self._folder / f"{name}.hosts", (member.own + lines).encode())

    def _forget(self, name: str) -> None:
        for suffix in ("json", "hosts"):
            with contextlib.suppress(OSError):
                (self._folder / f"{name}.{suffix}").unlink()


def own_hosts(request: Request) -> str:
    """Return what the hosts file of an attempt says without a group."""
    root = request.view or request.container
    return "".join(request.fill(text) for path, text in root.files if path == _HOSTS) if root else ""


def show_hosts(request: Request, path: Path) -> None:
    """Have an attempt see this file as its /etc/hosts."""
    if request.view is not None:
        request.view = View(**_with_hosts(request.view, path))
    if request.container is not None:
        request.container = Container(**_with_hosts(request.container, path))


def _with_hosts(root: View | Container, path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(root, name) for name in root.__slots__}
    fields["files"] = [file for file in root.files if file[0] != _HOSTS]
    fields["binds"] = [*root.binds, [str(path), _HOSTS]]
    return fields


def _rewrite(path: Path, content: bytes) -> None:
    """Replace the content of a file that others have open: it stays the same file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)
