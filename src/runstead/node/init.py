"""The first process of a job's process namespace: builds the view, starts the command, reaps what is left over.

When it ends the kernel kills everything else in the namespace. It talks to its supervisor over one
SOCK_SEQPACKET pair:

    to the supervisor    R             the command was executed
                         F{json}       it was not; why
                         X<status>     it ended, as waitpid tells it
    from the supervisor  T, K          SIGTERM, SIGKILL to every process of the job
"""

import json
import os
import select
import signal
import socket

from runstead.node import (
    attendant,
    bundle,
    command,
    framing,
    namespaces,
    places,
    priority,
    processes,
    seccomp,
    syscalls,
    users,
    venv,
)
from runstead.node.inside import imports
from runstead.node.inside.agent import Agent
from runstead.node.inside.ground import Ground
from runstead.node.request import NO_NETWORK, Container, Request
from runstead.node.roots import image, machine, parts

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
        groups: list[list[str]],
        handed: list[str],
    ) -> None:
        self.request = Request.from_message(request)
        self.environment = environment  # of the command, complete
        self.folder = folder  # where the job's own files go
        self.mount_point = mount_point  # any empty directory
        self.shared = shared  # what the jobs of one owner share
        self.empty = empty
        self.owner = owner  # the machine's id of the job's root user; None: our own
        self.groups = groups  # the control groups that this process is in: kind and directory
        # The open files that come with it: "output" and "inside", where the server asks for things to be done here,
        # always, but for an order ahead; "users" a user namespace to enter, "network" likewise, "disk" a mount to
        # write to; "root" a mount namespace in which the root is made already, but for /proc.
        self.handed = handed

    @property
    def ahead(self) -> bool:
        """Whether this says what root to make, and another order will say for which job."""
        return "output" not in self.handed


def run(control: socket.socket, orders: socket.socket) -> None:
    """Be process 1 of a job; does not return. On `orders` come open files, then an Order; two of them if one is ahead.

    That the root of an order ahead is made is told as b"P".
    """
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        order, handed = _receive(orders)
        made = order.ahead
        if made:
            imports.stop()
            _make_root(order, handed)
            control.send(b"P")
            users_fd = {name: fd for name, fd in handed.items() if name == "users"}
            order, handed = _receive(orders)
            handed |= users_fd
        orders.close()
        output = handed.pop("output")
        os.set_inheritable(output, False)
        listener = socket.socket(fileno=handed.pop("inside"))
        os.set_inheritable(listener.fileno(), False)
        if order.request.container is not None and order.request.container.runtime:
            _have_run(order, order.request.container, handed, output, control, listener)
            os._exit(0)
        imports.stop()
        if not made:
            _make_root(order, handed)
        _enter(order, handed, control)
        user = _prepare(order, output)
        ground = Ground(
            environment=order.environment,
            folder=os.getcwd(),
            own_network=order.request.network is not None,
            own_ids=order.request.isolation == "root",
            user=user,
        )
        try:
            child = 0
            if order.request.argv:
                child = priority.start_as_usual(
                    lambda: command.spawn(order.request.argv, order.environment, output, user)
                )
        except (OSError, ValueError) as error:
            report = command.explain(order.request.argv, order.environment, os.getcwd(), error)
            control.send(b"F" + json.dumps(report).encode())
        else:
            os.close(output)
            control.send(b"R")
            control.send(b"X%d" % _attend(child, control, listener, ground, divided=order.request.divided))
    except _SupervisorGone:
        pass
    except BaseException as error:
        message = {"message": f"the job's surroundings could not be made: {error}", "code": None}
        control.send(b"F" + json.dumps(message).encode())
    os._exit(0)


def _receive(orders: socket.socket) -> tuple[Order, dict[str, int]]:
    """Return the next order and the open files that come with it."""
    word, fds, _, _ = socket.recv_fds(orders, 1, 5)
    message = framing.receive(orders)
    if not word or message is None:
        raise _SupervisorGone
    order = Order(**message)
    return order, dict(zip(order.handed, fds, strict=True))


def _have_run(
    order: Order,
    container: Container,
    handed: dict[str, int],
    output: int,
    control: socket.socket,
    listener: socket.socket,
) -> None:
    """Have the command run by an OCI runtime, from beginning to end."""
    priority.give_up()
    network = handed.pop("network", None) if bundle.makes_networks(container.runtime) else None
    syscalls.unshare(syscalls.CLONE_NEWNS)
    _enter_network(order.request, handed)
    base = _foundation(order, handed)
    command.forget_score()
    try:
        child = bundle.start(order.request, container, base, order.environment, output, network)
    except bundle.NotExecuted as error:
        control.send(b"F" + json.dumps(error.report).encode())
        return
    os.close(output)
    control.send(b"R")
    status = attendant.attend(child, control, order.request, container, order.environment, listener)
    if status is not None:
        control.send(b"X%d" % status)


class _SupervisorGone(Exception):
    """Nobody is there to report to."""


def _make_root(order: Order, handed: dict[str, int]) -> None:
    """Enter the job's mounts and network, and make its root directory."""
    request, owner = order.request, order.owner
    if "root" in handed:
        syscalls.enter(handed["root"], syscalls.CLONE_NEWNS)
        os.close(handed["root"])
    else:
        syscalls.unshare(syscalls.CLONE_NEWNS)  # not before: what is mounted meanwhile may be for this job
    _enter_network(request, handed)
    if request.container is not None:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        if "root" not in handed:
            image.build(request, request.container, _foundation(order, handed))
        parts.processes("/proc")
    elif request.view is not None:
        machine.build(request, request.view, order.folder, order.mount_point, order.shared, order.empty, owner)


def _enter(order: Order, handed: dict[str, int], control: socket.socket) -> None:
    """Take what is the job's own and leave everything that the command must not have."""
    request, owner = order.request, order.owner
    if request.container is not None and "root" not in handed:
        image.write_files(request, request.container, owner)
    namespaces.name_host(request.job_id)
    if "users" in handed:
        if owner is not None:
            syscalls.enter(handed["users"], syscalls.CLONE_NEWUSER)
            namespaces.become_root_inside()
            # A change of user clears it.
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(handed["users"])
    _see_supervisor(control)
    try:
        syscalls.leave_keyring()
    except OSError:
        pass  # a kernel without keys
    command.forget_score()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    namespaces.drop_capabilities(here=owner is None)


def _enter_network(request: Request, handed: dict[str, int]) -> None:
    """Enter the job's network."""
    if "network" in handed:
        syscalls.enter(handed["network"], syscalls.CLONE_NEWNET)
        os.close(handed["network"])
    if request.network == NO_NETWORK:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        namespaces.raise_loopback()


def _foundation(order: Order, handed: dict[str, int]) -> image.Foundation:
    mapping, disk = handed.get("users"), handed.get("disk")
    return image.Foundation(order.folder, order.mount_point, order.shared, order.groups, order.owner, mapping, disk)


def _prepare(order: Order, output: int) -> users.User | None:
    """Make ready what the command starts with, with the job's own rights; return who it runs as, if not as root."""
    request = order.request
    user: users.User | None = None
    if request.container is not None:
        user = users.find(request.container.user)
        order.environment.setdefault("HOME", user.home)
        image.enter_folder(request.container.working_dir or "/", user)
        if user.uid:
            os.fchown(output, user.uid, user.gid)  # so that it can open /dev/stdout
    elif request.view is not None:
        view, own = request.view, f"{places.SHARED}/venvs/{request.job_id}-{request.attempt}"
        venv.make(own, view.python, view.python_version, view.pip_paths)
        os.chdir(places.WORK)
    _wake_on_signals()
    if request.container is not None:
        if request.container.filtered:
            seccomp.load()
        image.equip(request.container)
    return user if user is not None and (user.uid or user.gid or user.groups) else None


def _see_supervisor(control: socket.socket) -> None:
    """Raise _SupervisorGone when it died before PR_SET_PDEATHSIG took effect: its end of the line is closed then."""
    poll = select.poll()
    poll.register(control, 0)
    if poll.poll(0):
        raise _SupervisorGone


_REAPED_AT_ONCE = 64  # a bomb leaves dead as fast as they are buried: orders are looked at in between
_LEFT_MILLIS = 50  # how often to look who is left when the attempt is to end

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


def _attend(child: int, control: socket.socket, listener: socket.socket, ground: Ground, *, divided: bool) -> int:
    """Reap, and do what is asked for, until the command ends; return its status.

    Without a command (0) there is an end only when one is asked for, and then as soon as nobody else is left.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(_signals, select.POLLIN)
    # Beside a command, or compartments, it could not tell what belongs to a program that it attends to.
    agent = Agent(listener, ground, poll, attends=not child and not divided)
    asked = 0  # by which signal the attempt was asked to end
    while True:
        more = True
        for _ in range(_REAPED_AT_ONCE):
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if asked and not child:
                    return asked
                ended, status = 0, 0
            if ended == 0:
                more = False
                break
            if ended == child:
                return status
            agent.reaped(ended, status)
        if asked and not child and _is_alone():
            return asked
        for fd, event in poll.poll(0 if more else _LEFT_MILLIS if asked and not child else agent.wait_millis()):
            if fd == _signals:
                _forward(os.read(_signals, 512), child)
            elif fd == control.fileno():
                word = control.recv(16)
                if not word:
                    raise _SupervisorGone
                if not asked and not child:
                    agent.finish()
                asked = signal.SIGTERM if word == b"T" else signal.SIGKILL
                _signal_all(asked)
            else:
                agent.handle(fd, event)
        agent.look()


def _is_alone() -> bool:
    """Say whether nobody is left but those who only serve: the first processes of compartments."""
    for pid in processes.children(os.getpid()) or []:
        try:
            with open(f"/proc/{pid}/status", "rb") as lines:
                ids = next((line for line in lines if line.startswith(b"NSpid:")), b"").split()[1:]
        except OSError:
            continue
        if len(ids) < 2 or ids[-1] != b"1" or processes.children(pid):
            return False
    return True


def _forward(numbers: bytes, child: int) -> None:
    for number in set(numbers).intersection(_FORWARDED) if child else ():
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return


def _signal_all(number: int) -> None:
    try:
        os.kill(-1, number)  # every process of the namespace but this one
    except ProcessLookupError:
        return
