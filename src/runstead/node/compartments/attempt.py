"""What has to be known of an attempt that is divided, and where its compartments are."""

import os

from runstead.node import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Request

SOCKET = "divide"
FOLDER = "compartments"
FACTS = "facts.json"
BASE = "/sbx"  # inside; where homes are


class Attempt:
    """What has to be known of the attempt that is divided."""

    __slots__ = ("group", "init", "owner", "path", "request")

    def __init__(self, path: str, request: "Request", group: cgroups.Group, init: int, owner: int | None) -> None:
        self.path = path  # its directory
        self.request = request
        self.group = group
        self.init = init  # its first process
        self.owner = owner  # the machine's id of its root user; None: the same

    def place(self, compartment: str) -> str:
        """Return the directory of a compartment."""
        return os.path.join(self.path, FOLDER, compartment)

    def namespace(self, kind: str) -> int:
        """Open one of its namespaces."""
        return os.open(f"/proc/{self.init}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
