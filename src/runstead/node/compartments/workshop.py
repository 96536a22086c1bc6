"""What a maker keeps from one request to the next."""

import os
import select
import signal
import time

from runstead.node.compartments.attempt import Attempt
from runstead.node.compartments.base import Base
from runstead.node.compartments.crossing import Crossing
from runstead.node.compartments.entry import list_in
from runstead.node.compartments.identities import Identities
from runstead.node.roots import parts


class Workshop:
    """What a maker keeps."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.crossing = Crossing(attempt)
        self.entries = list_in(attempt.folder)  # of what is there
        self.identities = Identities(attempt)
        self.undivided = attempt.group.undivided().open()
        self.hidden = parts.open_to_all("/proc")
        self._base: Base | None = None
        self._firsts: dict[str, int] = {}  # our children: the first processes of compartments that we made

    def base(self) -> Base:
        """Return the place of the homes, made the first time. Raises OSError."""
        if self._base is None:
            self._base = Base(self.attempt, self.crossing)
        return self._base

    def note_first(self, name: str, pid: int) -> None:
        """Take note of the first process of a compartment, our child."""
        self._firsts[name] = pid

    def kill(self, name: str) -> bool:
        """Kill the first process of a compartment, and thereby all of them; False if that is no child of ours."""
        pid = self._firsts.get(name)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)  # it has not been waited for: the number is its own
        return True

    def bury(self, name: str, until: float) -> None:
        """Wait, if it is a child of ours, until the first process of a compartment is gone with all the others."""
        pid = self._firsts.get(name)
        if pid is None or not _has_ended_by(pid, until):
            return
        os.waitpid(pid, 0)
        del self._firsts[name]


def _has_ended_by(pid: int, until: float) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # before Linux 5.3
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(until - time.monotonic(), 0) * 1000))
    finally:
        os.close(fd)
