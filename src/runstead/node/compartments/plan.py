"""What has to be known of one compartment to make it, and what has to be open."""

import errno
import os
import socket

from runstead.node.compartments.attempt import Attempt, home_of
from runstead.node.compartments.entry import Entry
from runstead.node.inside.agent import listen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OWN_PROCESSES = 2  # of an agent, beside what its programs may have


def unfinished(name: str) -> str:
    """Return the name of the socket of a compartment that is being made."""
    return f".{name}"


class Plan:
    """One compartment to be: nothing runs in it yet."""

    def __init__(
        self, entry: Entry, network: str | None, limits: "dict[str, Any]", attempt: Attempt, hosts: str | None
    ) -> None:
        self.entry = entry
        self.name = entry.id
        self.uid = entry.uid
        self.limits = limits
        self.attempt = attempt
        self.hosts = hosts  # lines for its hosts file; None: as the attempt's
        self.home = home_of(self.name)
        self.group = attempt.group.below(self.name)
        # Of its network namespace; None: a new one, without a way out.
        self.network = None if network is None else os.open(network, os.O_RDONLY | os.O_CLOEXEC)
        self.listener: socket.socket | None = None
        self.groups: list[int] = []  # to be entered, in this order
        self._opened: list[int] = []

    def prepare(self, undivided: list[int]) -> None:
        """Make its control groups and listen for it, while the machine's files are to be seen.

        `undivided` are control groups of the attempt that it is in beside its own.
        """
        try:
            self.listener = listen(self.attempt.folder, unfinished(self.name))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            os.unlink(os.path.join(self.attempt.folder, unfinished(self.name)))  # of a maker that was killed
            self.listener = listen(self.attempt.folder, unfinished(self.name))
        self.group.create(
            cpu_millicores=self.limits.get("cpu_millicores") or 0,
            memory_bytes=self.limits["memory_bytes"],
            pids_limit=self.limits["processes"] + _OWN_PROCESSES,
        )
        self._opened = self.group.open()
        self.groups = [*undivided, *self._opened]

    def close(self) -> None:
        """Close all of it."""
        if self.listener is not None:
            self.listener.close()
        for fd in (*self._opened, *(() if self.network is None else (self.network,))):
            os.close(fd)
