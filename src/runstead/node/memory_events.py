"""Hears that the kernel kills for memory in a control group that others made, and will remove before we can look.

A group is gone a moment after the last process in it; so its counter is read whenever the kernel says that it changed.
"""

import os
import select

from runstead.node import cgroups


class MemoryEvents:
    """Of the group that a process is in. Where it cannot be found nothing is ever heard."""

    def __init__(self, pid: int, poll: select.poll) -> None:
        self.kills = 0
        self._poll = poll
        self._counter = self._event = -1
        for kind, folder in cgroups.folders_of(pid):
            try:
                if kind == "v2" and os.path.exists(f"{folder}/memory.events"):
                    self._event = self._counter = os.open(f"{folder}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
                elif kind == "memory":
                    self._counter = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
                    self._event = _register(folder, self._counter)
            except OSError:
                continue
        if self._event >= 0:
            poll.register(self._event, select.POLLPRI if self._event == self._counter else select.POLLIN)
            self.look()

    def handle(self, fd: int, event: int) -> bool:
        """Do what has to be done about a file descriptor that became ready; False when it is none of ours."""
        if fd < 0 or fd != self._event:
            return False
        if self._event != self._counter:
            os.read(self._event, 8)
        if not self.look() or event & select.POLLNVAL:
            self.close()
        return True

    def look(self) -> bool:
        """Read the counter; False when the group is gone."""
        if self._counter < 0:
            return False
        try:
            text = os.pread(self._counter, 4096, 0).decode("ascii", "replace")
        except OSError:
            return False
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                self.kills = max(self.kills, int(value))
        return True

    def close(self) -> None:
        """Let go. Idempotent."""
        if self._event >= 0:
            self._poll.unregister(self._event)
        for fd in {self._event, self._counter} - {-1}:
            os.close(fd)
        self._event = self._counter = -1


def _register(folder: str, counter: int) -> int:
    """Have a version 1 group tell when it runs out of memory."""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with open(f"{folder}/cgroup.event_control", "w", encoding="ascii") as control:
            control.write(f"{event} {counter}")
    except OSError:
        os.close(event)
        raise
    return event
