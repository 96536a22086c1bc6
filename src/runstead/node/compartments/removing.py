"""Removes compartments, with all that runs in them and their homes."""

import os
import time

from runstead.node import processes, removal, syscalls
from runstead.node.compartments.aside import in_child
from runstead.node.compartments.attempt import BASE, FACTS, Attempt
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

_EMPTY_SECONDS = 10.0


def remove_all(ids: list[str], attempt: Attempt, *, unfinished: bool = False) -> int:
    """Remove them; return how many were there. Raises Refusal, OSError."""
    there = [one for one in ids if unfinished or os.path.exists(os.path.join(attempt.place(one), FACTS))]
    if not there:
        return 0
    groups = {one: attempt.group.below(one) for one in there}
    for group in groups.values():
        group.kill()
    mount = attempt.namespace("mnt")
    until = time.monotonic() + _EMPTY_SECONDS
    for one, group in groups.items():
        while not group.remove():
            group.kill()
            processes.reap_all()
            if time.monotonic() > until:
                raise Refusal(UNAVAILABLE, f"what runs in a part of the job does not end: {one}")
            time.sleep(0.001)
    in_child(lambda: _delete_places(there, mount))
    for one in there:
        removal.delete_tree(attempt.place(one))
    return len(there)


def _delete_places(names: list[str], mount: int) -> None:
    syscalls.enter(mount, syscalls.CLONE_NEWNS)
    base = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for kind in ("homes", "tmp"):
        parent = os.open(kind, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
        for name in names:
            removal.delete_in(parent, name)
