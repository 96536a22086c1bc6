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

from runstead.node import command, namespaces, places, syscalls, venv
from runstead.node.request import NO_NETWORK, Request

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def run(
    request: Request,
    environment: dict[str, str],
    folder: str,
    mount_point: str,
    shared: str,
    empty: str,
    owner: int | None,
    network: int | None,
    control: socket.socket,
    output: int,
) -> None:
    """Be process 1 of the job; does not return."""
    try:
        _enter(request, folder, mount_point, shared, empty, owner, network, control)
        try:
            child = command.spawn(request.argv, environment, output)
        except (OSError, ValueError) as error:
            report = command.explain(request.argv, environment, places.WORK, error)
            control.send(b"F" + json.dumps(report).encode())
        else:
            os.close(output)
            control.send(b"R")
            control.send(b"X%d" % _attend(child, control))
    except _SupervisorGone:
        pass
    except BaseException as error:
        message = f"the job's surroundings could not be made: {error}"
        control.send(b"F" + json.dumps({"message": message, "code": None}).encode())
    os._exit(0)


class _SupervisorGone(Exception):
    """Nobody is there to report to."""


def _enter(
    request: Request,
    folder: str,
    mount_point: str,
    shared: str,
    empty: str,
    owner: int | None,
    network: int | None,
    control: socket.socket,
) -> None:
    """Enter the namespaces and leave everything that the command must not have."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    if network is not None:
        syscalls.enter(network, syscalls.CLONE_NEWNET)
    elif request.network == NO_NETWORK:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        namespaces.raise_loopback()
    namespaces.build(request, folder, mount_point, shared, empty, owner)
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
