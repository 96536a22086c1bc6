"""The first process of a job's process namespace: builds the view, starts the command, reaps what is left over.

When it ends the kernel kills everything else in the namespace. It talks to its supervisor over one
SOCK_SEQPACKET pair:

    to the supervisor    M             I have a user namespace: write its id maps
                         R             the command was executed
                         F{json}       it was not; why
                         X<status>     it ended, as waitpid tells it
    from the supervisor  G             go on
                         T, K          SIGTERM, SIGKILL to every process of the job
"""

import json
import os
import select
import signal
import socket

from runstead.node import command, framing, namespaces, places, syscalls, venv
from runstead.node.request import NO_NETWORK, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Order:
    """What process 1 is told when it becomes a certain job's."""

    def __init__(
        self,
        *,
        request: "dict[str, Any]",
        environment: dict[str, str],
        folder: str,
        mount_point: str,
        shared: str,
        empty: str,
        owner: int | None,
    ) -> None:
        self.request = Request.from_message(request)
        self.environment = environment  # of the command, complete
        self.folder = folder  # where the job's own files go
        self.mount_point = mount_point  # any empty directory
        self.shared = shared  # what the jobs of one owner share
        self.empty = empty
        self.owner = owner  # the machine's id of the job's root user; None: our own


def run(control: socket.socket, orders: socket.socket) -> None:
    """Be process 1 of a job; does not return. On `orders` come open files, then an Order."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        word, fds, _, _ = socket.recv_fds(orders, 1, 2)
        message = framing.receive(orders)
        if not word or message is None:
            raise _SupervisorGone
        orders.close()
        order = Order(**message)
        output, *network = fds
        os.set_inheritable(output, False)
        _enter(order, network, control)
        try:
            child = command.spawn(order.request.argv, order.environment, output)
        except (OSError, ValueError) as error:
            report = command.explain(order.request.argv, order.environment, places.WORK, error)
            control.send(b"F" + json.dumps(report).encode())
        else:
            os.close(output)
            control.send(b"R")
            control.send(b"X%d" % _attend(child, control))
    except _SupervisorGone:
        pass
    except BaseException as error:
        message = {"message": f"the job's surroundings could not be made: {error}", "code": None}
        control.send(b"F" + json.dumps(message).encode())
    os._exit(0)


class _SupervisorGone(Exception):
    """Nobody is there to report to."""


def _enter(order: Order, network: list[int], control: socket.socket) -> None:
    """Enter what is the job's own and leave everything that the command must not have."""
    request, owner = order.request, order.owner
    syscalls.unshare(syscalls.CLONE_NEWNS)  # not before: what is mounted meanwhile may be for this job
    for fd in network:
        syscalls.enter(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
    if request.network == NO_NETWORK:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        namespaces.raise_loopback()
    namespaces.build(request, order.folder, order.mount_point, order.shared, order.empty, owner)
    namespaces.name_host(request.job_id)
    if owner is not None:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        control.send(b"M")
        _await_go(control)
        namespaces.become_root_inside()
        # A change of user clears it.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        control.send(b"M")
    _await_go(control)
    command.forget_score()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    namespaces.drop_capabilities()
    own = f"{places.SHARED}/venvs/{request.job_id}-{request.attempt}"
    venv.make(own, request.view.python, request.view.python_version, request.view.pip_paths)
    os.chdir(places.WORK)
    _wake_on_signals()


def _await_go(control: socket.socket) -> None:
    # A supervisor that died before PR_SET_PDEATHSIG took effect shows as end of file.
    if control.recv(1) != b"G":
        raise _SupervisorGone


_signals = -1


def _wake_on_signals() -> None:
    """Turn signals into bytes of a pipe, so that one poll waits for all that can happen."""
    global _signals
    _signals, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(_signals, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_FORWARDED):
        signal.signal(number, _ignore)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _attend(child: int, control: socket.socket) -> int:
    """Reap until the command ends; return its status."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(_signals, select.POLLIN)
    while True:
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if ended == child:
                return status
            if ended == 0:
                break
        for fd, _events in poll.poll():
            if fd == _signals:
                _forward(os.read(_signals, 512), child)
                continue
            word = control.recv(16)
            if not word:
                raise _SupervisorGone
            _signal_all(signal.SIGTERM if word == b"T" else signal.SIGKILL)


def _forward(numbers: bytes, child: int) -> None:
    for number in set(numbers).intersection(_FORWARDED):
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return


def _signal_all(number: int) -> None:
    try:
        os.kill(-1, number)  # every process of the namespace but this one
    except ProcessLookupError:
        return
