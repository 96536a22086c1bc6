"""What has to be known of an attempt that is divided, and where its compartments are."""

import os

from runstead.node import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Request

SOCKET = "divide"
FOLDER = "compartments"
BASE = "/sbx"  # inside; where homes are


def home_of(compartment: str) -> str:
    """Return the home of a compartment, as it is called inside."""
    return f"{BASE}/homes/{compartment}"


class Attempt:
    """What has to be known of the attempt that is divided."""

    __slots__ = ("group", "init", "owner", "path", "request")

    def __init__(self, path: str, request: "Request", group: cgroups.Group, init: int, owner: int | None) -> None:
        self.path = path  # its directory
        self.request = request
        self.group = group
        self.init = init  # its first process
        self.owner = owner  # the machine's id of its root user; None: the same

    @property
    def folder(self) -> str:
        """The directory that the sockets of its compartments are in."""
        return os.path.join(self.path, FOLDER)

    def namespace(self, kind: str) -> int:
        """Open one of its namespaces."""
        return os.open(f"/proc/{self.init}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
