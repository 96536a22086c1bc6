"""The root directory of a job whose supervisor is shared, made by a thread of that for the first process to enter.

All that a first process does it does for the first time, in pages that are copied as they are touched. A supervisor
that has made other roots is done in half of the time. Namespaces are each thread's own.
"""

import os

from runstead.node import syscalls
from runstead.node.roots import image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Container, Request


def make(request: "Request", container: "Container", base: image.Foundation, network: int | None) -> int:
    """Return an open mount namespace in which the root is made, but for /proc. Raises OSError.

    The thread that calls this shares its root and working directory with no other from here on.
    """
    kinds = [("mnt", syscalls.CLONE_NEWNS), *([("net", syscalls.CLONE_NEWNET)] if network is not None else [])]
    ours = [(os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind) for name, kind in kinds]
    made = -1
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        made = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if network is not None:
            syscalls.enter(network, syscalls.CLONE_NEWNET)
        image.build(request, container, base)
        image.write_files(request, container, base.owner)
    except BaseException:
        if made >= 0:
            os.close(made)
        raise
    finally:
        for fd, kind in ours:
            syscalls.enter(fd, kind)
            os.close(fd)
    return made
