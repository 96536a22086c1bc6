"""Process 1 of a job to come: in its namespaces and control groups already, waiting to be told which job.

What it takes to get there (two forks, namespaces, and above all the move into the control groups, for which
the kernel waits 5 to 15 ms) is then done before anybody asks for a job.
"""

import json
import os
import socket
import time

from runstead.node import cgroups, framing, init, priority, processes, syscalls
from runstead.node.namespaces import UserNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Held(Protocol):
        """What belongs to a seed and goes with it."""

        def discard(self) -> None:
            """Give it back."""
            ...


_LOOKS, _LOOK_SECONDS = 250, 0.002


class Seed:
    """The supervisor's side of it. Making one forks; raises OSError where that is not possible."""

    def __init__(self, isolation: str, places: list[list[str]], group: str, lock: int = -1) -> None:
        """`lock`: what is held as long as the attempt lives, by process 1 as well."""
        self.isolation = isolation
        self.places = places
        self.name = group
        self.group = cgroups.Group(places, group)
        self.talk, their_talk = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders, their_orders = socket.socketpair()
        self.ahead: Held | None = None  # what was made for a job to come (`ahead.py`)
        self.users = UserNamespace() if isolation == "root" else None  # for the ids of an owner that is not known yet
        if isolation == "user":
            _enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWPID)
        self.pid = os.fork()
        if self.pid == 0:
            # What is open beside these may be of other attempts.
            syscalls.close_all_but({their_talk.fileno(), their_orders.fileno(), lock})
            _be_first(self.group, their_talk, their_orders)
        their_talk.close()
        their_orders.close()
        priority.raise_for(self.pid)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)

    def order(self, order: "dict[str, Any]", fds: list[int], *, last: bool = True) -> None:
        """Tell it what to become."""
        socket.send_fds(self._orders, [b"O"], fds)
        self._orders.sendall(framing.encode(order))
        if last:
            self._orders.close()

    def close(self) -> None:
        """Let go of what is open; it has ended."""
        self.talk.close()
        self._orders.close()
        if self.users is not None:
            self.users.close()

    def discard(self) -> None:
        """End it unused."""
        processes.end_child(self.pid)
        if self.ahead is not None:
            self.ahead.discard()
        self.close()
        for _ in range(_LOOKS):  # what just died may still be in them for a moment
            if self.group.remove():
                return
            time.sleep(_LOOK_SECONDS)


def _be_first(group: cgroups.Group, talk: socket.socket, orders: socket.socket) -> None:
    try:
        _enter(group)
    except OSError as error:
        report = {"message": f"the job's control groups cannot be entered: {error}", "code": None}
        talk.send(b"F" + json.dumps(report).encode())
        os._exit(1)
    init.run(talk, orders)


def _enter(group: cgroups.Group) -> None:
    for attempts_left in (2, 1, 0):
        try:
            group.create(cpu_millicores=0, memory_bytes=0, pids_limit=0)
            group.enter_alone()
            return
        except FileNotFoundError:  # a server that just started took it for one that was left behind
            if not attempts_left:
                raise


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for path, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{path}", "w") as file:
            file.write(text)
