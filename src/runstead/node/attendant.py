"""Attends to a container that an OCI runtime has made (`bundle.py`), in the job's first process, which is outside."""

import os
import select
import signal
import socket
import time

from runstead.node import bundle, processes
from runstead.node.inside.agent import Agent
from runstead.node.inside.ground import Ground
from runstead.node.request import NO_NETWORK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runstead.node.request import Container, Request

_LEFT_MILLIS = 50  # how often to look who is left when the attempt is to end
_MADE_SECONDS = 10.0  # for the runtime to make the container
_PAUSE_SECONDS = 0.002


def attend(
    child: int,
    control: socket.socket,
    request: "Request",
    container: "Container",
    environment: "dict[str, str]",
    listener: socket.socket,
) -> int | None:
    """Do what is asked for until the runtime ends; return its status as waitpid would tell the command's.

    None: nobody asks any more. Without a command there is an end only when one is asked for, and then as soon as nobody
    is left.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    children = processes.watch_children()
    poll.register(children, select.POLLIN)
    agent: Agent | None = None
    if bundle.is_entered(container.runtime):
        poll.register(listener, select.POLLIN)
    else:
        listener.close()
    asked = 0  # by which signal the attempt was asked to end
    while True:
        for pid, status in processes.reap_all():
            if pid == child:
                return _status(status)
            if agent is not None:
                agent.reaped(pid)
        if asked and not request.argv and _is_alone(child):
            return asked
        for fd, event in poll.poll(_LEFT_MILLIS if asked and not request.argv else None):
            if fd == children:
                os.read(children, 512)
            elif fd == control.fileno():
                word = control.recv(16)
                if not word:
                    return None
                if word != b"T":
                    return signal.SIGKILL  # our end is the end of all
                asked = signal.SIGTERM
                if agent is not None and not request.argv:
                    agent.finish()
                _ask_to_end(child, request, container.runtime)
            else:
                agent = agent or _let_in(child, request, container, environment, listener, poll)
                if agent is not None:
                    agent.handle(fd, event)
                else:  # it ends: nobody is let in any more
                    poll.unregister(listener)
                    listener.close()


def _let_in(
    child: int,
    request: "Request",
    container: "Container",
    environment: "dict[str, str]",
    listener: socket.socket,
    poll: select.poll,
) -> Agent | None:
    """Have the server's requests done inside of the container, once the runtime has made it."""
    from runstead.node.inside.entrance import Entrance  # here: what it needs is in no other first process's memory

    until = time.monotonic() + _MADE_SECONDS
    while (first := _first_inside(child)) is None:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) or time.monotonic() > until:
            return None
        time.sleep(_PAUSE_SECONDS)
    try:
        entrance = Entrance(first, container.user)
    except OSError:
        return None
    ground = Ground(
        environment=environment,
        folder=container.working_dir or "/",
        own_network=request.network is not None,
        own_ids=True,
        entrance=entrance,
    )
    return Agent(listener, ground, poll)


def _first_inside(child: int) -> int | None:
    """Return the container's first process, one of those that the runtime forked; None while there is none."""
    for pid in processes.descendants(child):
        try:
            with open(f"/proc/{pid}/status", "rb") as lines:
                ids = next((line for line in lines if line.startswith(b"NSpid:")), b"").split()[1:]
        except OSError:
            continue
        if len(ids) > 1 and ids[-1] == b"1":
            return pid
    return None


def _is_alone(child: int) -> bool:
    """Say whether nobody is left but the runtime and what stays in its container."""
    first = _first_inside(child)
    return processes.children(os.getpid()) == [child] and (first is None or not processes.children(first))


def _ask_to_end(child: int, request: "Request", runtime: str) -> None:
    if not bundle.is_entered(runtime):
        argv = [runtime, *bundle.options(runtime, NO_NETWORK), "kill", "--all", bundle.identity(request), "TERM"]
        os.posix_spawn(runtime, argv, {"PATH": os.defpath})
        return
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), child):
            try:
                os.kill(int(name), signal.SIGTERM)
            except ProcessLookupError:
                continue


def _status(status: int) -> int:
    """Turn the runtime's 128 + n into what it stands for: the command was killed by signal n."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
    return code - 128 if code > 128 and code - 128 in signal.valid_signals() else status
