"""Divides a running attempt: many small parts in it, each closed off from the others and from the attempt.

A compartment has a user id, a home, control groups below the attempt's, and namespaces of its own for processes,
mounts, network and IPC; it has no capabilities. Its first process is an agent as the attempt's own is
(`inside/agent.py`), reached by a socket in a directory of its own:

    <attempt>/compartments/next               the user id of the next one
    <attempt>/compartments/<id>/facts.json    what it is; it is there when this is
    <attempt>/compartments/<id>/inside        the socket of its agent

They are made by the attempt's supervisor, which is outside and privileged: it takes connections on <attempt>/divide,
one after the other, and forks a process for each. That process and its children enter the attempt's namespaces with
the machine's rights, so they trust nothing there: paths are walked without following links, nothing is imported. They
are among the attempt's processes from the beginning: whatever a supervisor forks is.
"""

import os
import select
import signal
import socket
import time

from runstead.node import (
    cgroups,
    command,
    framing,
    namespaces,
    places,
    priority,
    processes,
    removal,
    rundir,
    seccomp,
    syscalls,
)
from runstead.node.inside import imports
from runstead.node.inside.agent import Agent, listen
from runstead.node.inside.ground import Ground
from runstead.node.inside.refusal import INVALID, UNAVAILABLE, Refusal, explain
from runstead.node.roots import parts
from runstead.node.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runstead.node.request import Request

SOCKET = "divide"
FOLDER = "compartments"
FACTS = "facts.json"
BASE = "/sbx"  # inside; where homes are

_FIRST_ID, _LAST_ID = 20000, 60000
_AT_ONCE = 8
_OWN_PROCESSES = 2  # of an agent, beside what its programs may have
_HEX = frozenset("0123456789abcdef")
_READY_SECONDS = 30.0
_EMPTY_SECONDS = 10.0
_TMPFS = MS_NOSUID | MS_NODEV
_ENTERED = (
    ("uts", syscalls.CLONE_NEWUTS),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
    ("mnt", syscalls.CLONE_NEWNS),
)


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


class Divider:
    """The supervisor's part: takes requests, one at a time."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._poll = select.poll()
        self._listener = listen(attempt.path, SOCKET)
        self._maker = 0
        self._line = -1  # at its end when the maker is gone

    def register(self, poll: select.poll) -> None:
        """Have requests waited for."""
        self._poll = poll
        poll.register(self._listener, select.POLLIN)

    def finish(self) -> None:
        """Wait for what we forked: it is one of the attempt's processes, which are all about to be gone."""
        if self._line >= 0:
            os.waitpid(self._maker, 0)

    def handle(self, fd: int) -> bool:
        """Do what has to be done about a file descriptor that became ready; False when it is none of ours."""
        if fd == self._line:
            self._poll.unregister(fd)
            os.close(fd)
            os.waitpid(self._maker, 0)
            self._line = -1
            self._poll.register(self._listener, select.POLLIN)
            return True
        if fd != self._listener.fileno():
            return False
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return True
        self._line, theirs = os.pipe()
        try:
            self._maker = os.fork()
        except OSError:  # the other side sees the end, and asks again
            connection.close()
            os.close(self._line)
            os.close(theirs)
            self._line = -1
            return True
        if self._maker == 0:
            _serve(connection, self._attempt)
        connection.close()
        os.close(theirs)
        self._poll.unregister(self._listener)
        self._poll.register(self._line, select.POLLIN)
        return True


def _serve(connection: socket.socket, attempt: Attempt) -> None:
    """Answer one request in a process of its own; does not return."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        connection.setblocking(True)
        imports.stop()
        message = framing.receive(connection) or {}
        try:
            answer = {"ok": _answer(message, attempt)}
        except (Refusal, OSError, ValueError) as error:
            answer = explain(error)
            if isinstance(error, OSError):
                answer["error"] = UNAVAILABLE
        framing.send(connection, answer)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _answer(message: "dict[str, Any]", attempt: Attempt) -> "dict[str, Any]":
    wanted = [str(one) for one in message.get("ids", [])]
    if any(len(one) != 16 or not _HEX.issuperset(one) for one in wanted):
        raise Refusal(INVALID, "the id of a compartment has 16 hexadecimal digits")
    if message.get("op") == "make":
        return {"made": _make_all(dict.fromkeys(wanted), message, attempt)}
    if message.get("op") == "remove":
        return {"removed": _remove_all(list(dict.fromkeys(wanted)), attempt)}
    raise Refusal(INVALID, "there is no such request")


# Making


def _make_all(wanted: "dict[str, None]", message: "dict[str, Any]", attempt: Attempt) -> "list[dict[str, Any]]":
    there = {one: rundir.read_json(os.path.join(attempt.place(one), FACTS)) for one in wanted}
    missing = [one for one, facts in there.items() if facts is None]
    if missing:
        networks = dict(zip(message["ids"], message.get("networks") or [], strict=False))
        _prepare_base(attempt)
        try:
            _make(missing, networks, message["limits"], attempt)
        except BaseException:
            _remove_all(missing, attempt, unfinished=True)
            raise
    return [rundir.read_json(os.path.join(attempt.place(one), FACTS)) or {} for one in wanted]


def _make(ids: list[str], networks: "dict[str, list[str]]", limits: "dict[str, Any]", attempt: Attempt) -> None:
    uid = _take_uids(attempt, len(ids))
    opened = {kind: attempt.namespace(kind) for kind, _ in _ENTERED}
    if attempt.owner is not None:
        opened["user"] = attempt.namespace("user")
    waiting: dict[str, int] = {}
    for number, one in enumerate(ids):
        if len(waiting) >= _AT_ONCE:
            _await_ready(waiting)
        path = attempt.place(one)
        removal.delete_tree(path)
        os.makedirs(path, 0o700)
        network, address = networks.get(one) or (None, None)
        facts = {"id": one, "uid": uid + number, "home": f"{BASE}/homes/{one}", "address": address, "at": time.time()}
        rundir.write_json(os.path.join(path, "plan.json"), facts)
        ready, report = os.pipe()
        if os.fork() == 0:
            os.close(ready)
            _become(_Plan(one, uid + number, network, limits, attempt), opened, report)
        os.close(report)
        waiting[one] = ready
    try:
        while waiting:
            _await_ready(waiting)
    finally:
        # They belong to the attempt's processes: not waited for, they would keep these from ending.
        processes.reap_until_childless(_READY_SECONDS)
    for one in ids:
        os.rename(os.path.join(attempt.place(one), "plan.json"), os.path.join(attempt.place(one), FACTS))


def _take_uids(attempt: Attempt, count: int) -> int:
    """Return the first of so many user ids that nobody has."""
    path = os.path.join(attempt.path, FOLDER, "next")
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    first = int((rundir.read_json(path) or {}).get("uid", _FIRST_ID))
    if first + count > _LAST_ID:
        first = _FIRST_ID  # those of long ago are gone by now, but for some
        taken = {facts["uid"] for facts in _facts(attempt)}
        while taken.intersection(range(first, first + count)):
            first += 1
    if first + count > _LAST_ID:
        raise Refusal(UNAVAILABLE, "all user ids of the attempt are taken")
    rundir.write_json(path, {"uid": first + count})
    return first


def _facts(attempt: Attempt) -> "list[dict[str, Any]]":
    names = os.listdir(os.path.join(attempt.path, FOLDER))
    found = (rundir.read_json(os.path.join(attempt.place(name), FACTS)) for name in names)
    return [facts for facts in found if facts is not None]


def _await_ready(waiting: dict[str, int]) -> None:
    """Wait until one more is there. Raises Refusal when one of them cannot be made."""
    poll = select.poll()
    names = {fd: name for name, fd in waiting.items()}
    for fd in names:
        poll.register(fd, select.POLLIN)
    events = poll.poll(_READY_SECONDS * 1000)
    if not events:
        raise Refusal(UNAVAILABLE, "a part of the job is not closed off in time")
    for fd, _ in events:
        said = os.read(fd, 4096)
        os.close(fd)
        del waiting[names[fd]]
        if said != b"R":
            why = said.decode("utf-8", "replace") or "its first process died"
            raise Refusal(UNAVAILABLE, f"a part of the job cannot be closed off: {why}")


def _prepare_base(attempt: Attempt) -> None:
    """Make the place for the homes, the first time."""
    mark = os.path.join(attempt.path, FOLDER, "base")
    if os.path.exists(mark):
        return
    os.makedirs(os.path.dirname(mark), 0o700, exist_ok=True)
    attempt.group.divide()
    tree = -1
    if attempt.request.container is None:  # whose root is in memory: homes are not to be
        folder = os.path.join(attempt.path, rundir.FILES, "sbx")
        os.makedirs(folder, 0o755, exist_ok=True)
        tree = syscalls.copy_tree(folder, recursive=False)
        syscalls.set_attributes(tree, MS_NOSUID | MS_NODEV, recursive=False)
    mount = attempt.namespace("mnt")
    _in_child(lambda: _make_base(mount, tree))
    with open(mark, "w"):
        pass


def _make_base(mount: int, tree: int) -> None:
    syscalls.enter(mount, syscalls.CLONE_NEWNS)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    base = _folder_in(root, BASE[1:], 0o755)
    if tree >= 0:
        syscalls.attach_at(tree, base)
        base = _folder_in(root, BASE[1:], 0o755)
    for name in ("homes", "tmp"):
        _folder_in(base, name, 0o711)


def _folder_in(parent: int, name: str, mode: int) -> int:
    """Open a directory, made if it is missing; never through a link."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


class _Plan:
    """One compartment to be."""

    def __init__(self, name: str, uid: int, network: str | None, limits: "dict[str, Any]", attempt: Attempt) -> None:
        self.name = name
        self.uid = uid
        self.network = network  # path of its network namespace; None: a new one, without a way out
        self.limits = limits
        self.attempt = attempt
        self.home = f"{BASE}/homes/{name}"


def _become(plan: _Plan, opened: dict[str, int], report: int) -> None:
    """Be the first process of a compartment, by way of a child; does not return. We are in the attempt's processes."""
    try:
        listener = _enter(plan, opened)
        if os.fork():
            os._exit(0)
        priority.raise_for(0)
        _furnish(plan)
        _give_up_rights(plan, opened.get("user"))
        os.write(report, b"R")
        _stay(plan, listener)
    except BaseException as error:
        os.write(report, f"{error}".encode("utf-8", "replace")[:4000])
    os._exit(1)


def _enter(plan: _Plan, opened: dict[str, int]) -> socket.socket:
    attempt, limits = plan.attempt, plan.limits
    group = attempt.group.below(plan.name)
    group.create(
        cpu_millicores=limits.get("cpu_millicores") or 0,
        memory_bytes=limits["memory_bytes"],
        pids_limit=limits["processes"] + _OWN_PROCESSES,
    )
    attempt.group.enter_alone()  # where processor time is counted there are no groups below
    group.enter_alone()
    command.forget_score()
    listener = listen(attempt.place(plan.name))
    if plan.network is not None:
        network = os.open(plan.network, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.enter(network, syscalls.CLONE_NEWNET)
        os.close(network)
    else:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        namespaces.raise_loopback()
    for kind, flag in _ENTERED:
        syscalls.enter(opened[kind], flag)
    _make_places(plan)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWPID)
    return listener


def _make_places(plan: _Plan) -> None:
    """Make its home and its /tmp, which lie beside those of the others but are shown to it alone."""
    owner = plan.uid + (plan.attempt.owner or 0)
    base = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for name in ("homes", "tmp"):
        parent = _folder_in(base, name, 0o711)
        place = _folder_in(parent, plan.name, 0o700)
        os.fchown(place, owner, owner)
        os.close(parent)
        os.close(place)
    os.close(base)


def _furnish(plan: _Plan) -> None:
    """Show this process, whose mounts are its own, nothing that it could write to but its own places."""
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)
    home = syscalls.copy_tree(plan.home, recursive=False)
    own = syscalls.copy_tree(f"{BASE}/tmp/{plan.name}", recursive=False)
    again = syscalls.copy_tree(f"{BASE}/tmp/{plan.name}", recursive=False)
    syscalls.restrict("/", MS_RDONLY | MS_NOSUID, recursive=True)
    syscalls.mount("tmpfs", BASE, "tmpfs", _TMPFS | MS_NOEXEC, "mode=755,size=16k")
    os.makedirs(plan.home, 0o755)
    for tree, target in ((home, plan.home), (own, "/tmp"), (again, "/var/tmp")):
        if os.path.isdir(target):
            syscalls.set_attributes(tree, MS_NOSUID | MS_NODEV, recursive=False)
            syscalls.attach(tree, target)
    syscalls.restrict(BASE, MS_RDONLY, recursive=False)
    hidden = (
        [places.SHARED] if plan.attempt.request.container is not None else [places.SHARED, places.HOME, places.WORK]
    )
    for path in hidden:
        if os.path.isdir(path):
            parts.hide(path)
    parts.processes_for_nobody("/proc")
    if os.path.isdir("/dev/shm"):
        limit = f"mode=1777,size={plan.limits['memory_bytes'] // 2}"
        syscalls.mount("tmpfs", "/dev/shm", "tmpfs", _TMPFS, limit)
    if os.path.isdir("/dev/pts"):
        options = f"newinstance,ptmxmode=0666,mode=0620,gid={(plan.attempt.owner or 0) + 5}"
        syscalls.mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    os.chdir(plan.home)


def _give_up_rights(plan: _Plan, users: int | None) -> None:
    if users is not None:
        syscalls.enter(users, syscalls.CLONE_NEWUSER)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    namespaces.drop_all_capabilities()
    os.setgroups([])
    os.setresgid(plan.uid, plan.uid, plan.uid)
    os.setresuid(plan.uid, plan.uid, plan.uid)
    container = plan.attempt.request.container
    if container is not None and container.filtered:
        seccomp.load()


def _stay(plan: _Plan, listener: socket.socket) -> None:
    """Serve and reap until the end of the attempt, or of the compartment: both come from outside."""
    null = os.open("/dev/null", os.O_RDWR)
    mine = os.dup(listener.fileno())
    for target, fd in enumerate((null, null, null, mine)):
        os.dup2(fd, target, inheritable=target < 3)
    listener.detach()
    syscalls.close_from(4)
    ground = Ground(environment={}, folder=plan.home, own_network=True, own_ids=False, rooted=True)
    children = processes.watch_children()
    poll = select.poll()
    poll.register(children, select.POLLIN)
    agent = Agent(socket.socket(fileno=3), ground, poll)
    while True:
        for fd, event in poll.poll():
            if fd != children:
                agent.handle(fd, event)
                continue
            os.read(children, 512)
            for pid, _ in processes.reap_all():
                agent.reaped(pid)


# Removing


def _remove_all(ids: list[str], attempt: Attempt, *, unfinished: bool = False) -> int:
    there = [one for one in ids if unfinished or os.path.exists(os.path.join(attempt.place(one), FACTS))]
    if not there:
        return 0
    groups = {one: attempt.group.below(one) for one in there}
    for group in groups.values():
        group.kill()
    mount = attempt.namespace("mnt")
    until = time.monotonic() + _EMPTY_SECONDS
    for one, group in groups.items():
        while not group.remove():
            group.kill()
            processes.reap_all()
            if time.monotonic() > until:
                raise Refusal(UNAVAILABLE, f"what runs in a part of the job does not end: {one}")
            time.sleep(0.001)
    _in_child(lambda: _delete_places(there, mount))
    for one in there:
        removal.delete_tree(attempt.place(one))
    return len(there)


def _delete_places(names: list[str], mount: int) -> None:
    syscalls.enter(mount, syscalls.CLONE_NEWNS)
    base = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for kind in ("homes", "tmp"):
        parent = os.open(kind, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
        for name in names:
            removal.delete_in(parent, name)


def _in_child(work: "Any") -> None:
    """Do something in a process of its own, that enters what it cannot leave. Raises Refusal with its reason."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(writer, f"{error}".encode("utf-8", "replace")[:4000] or b"?")
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 4096)
    os.close(reader)
    os.waitpid(child, 0)
    if said:
        raise Refusal(UNAVAILABLE, said.decode("utf-8", "replace"))
