"""What a compartment sees: nothing that it could write to but its own places, and nothing of its neighbours."""

import os

from runstead.node import places, syscalls
from runstead.node.compartments.attempt import BASE
from runstead.node.compartments.plan import Plan
from runstead.node.roots import parts
from runstead.node.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_TMPFS = MS_NOSUID | MS_NODEV
_HOSTS = "/etc/hosts"


def furnish(plan: Plan) -> None:
    """Show who has our mounts, which are a compartment's already, nothing to write to but its own places.

    What is at /proc is left to its first process.
    """
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    _show_places(plan)
    if plan.hosts is not None:
        _show_hosts(plan.hosts)
    syscalls.restrict(BASE, MS_RDONLY, recursive=False)
    hidden = (
        [places.SHARED] if plan.attempt.request.container is not None else [places.SHARED, places.HOME, places.WORK]
    )
    for path in hidden:
        if os.path.isdir(path):
            parts.hide(path)
    if os.path.isdir("/dev/shm"):
        limit = f"mode=1777,size={plan.limits['memory_bytes'] // 2}"
        syscalls.mount("tmpfs", "/dev/shm", "tmpfs", _TMPFS, limit)
    if os.path.isdir("/dev/pts"):
        options = f"newinstance,ptmxmode=0666,mode=0620,gid={(plan.attempt.owner or 0) + 5}"
        syscalls.mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    os.chdir(plan.home)


def _show_places(plan: Plan) -> None:
    """Show all of the attempt read-only but for the compartment's home and its /tmp, and nothing beside these."""
    sources = (plan.home, f"{BASE}/tmp/{plan.name}", f"{BASE}/tmp/{plan.name}")
    trees: list[int] = []
    try:
        trees.extend(syscalls.copy_tree(source, recursive=False) for source in sources)
        syscalls.restrict("/", MS_RDONLY | MS_NOSUID, recursive=True)
        syscalls.mount("tmpfs", BASE, "tmpfs", _TMPFS | MS_NOEXEC, "mode=755,size=64k")
        os.makedirs(plan.home, 0o755)
        for tree, target in zip(trees, (plan.home, "/tmp", "/var/tmp"), strict=True):
            if os.path.isdir(target):
                syscalls.set_attributes(tree, MS_NOSUID | MS_NODEV, recursive=False)
                syscalls.attach(tree, target)
    finally:
        for tree in trees:
            os.close(tree)


def _show_hosts(lines: str) -> None:
    """Add names to the hosts file, in this compartment's own view of it."""
    with open(_HOSTS, encoding="utf-8", errors="surrogateescape") as file:
        known = file.read()
    own = f"{BASE}/hosts"
    with open(own, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(known + lines)
    os.chmod(own, 0o644)
    try:  # one that the attempt itself has mounted may have no name any more, and nothing can be mounted over that
        syscalls.unmount(_HOSTS, syscalls.MNT_DETACH)
    except OSError:
        pass  # it is an ordinary file
    syscalls.mount(own, _HOSTS, None, MS_BIND)
    syscalls.restrict(_HOSTS, MS_RDONLY | MS_NOSUID | MS_NODEV, recursive=False)
