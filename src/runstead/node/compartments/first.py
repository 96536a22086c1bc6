"""The first process of a compartment: what it enters, gives up, and then serves."""

import os
import select
import socket

from runstead.node import command, namespaces, priority, processes, seccomp, syscalls
from runstead.node.compartments.attempt import BASE
from runstead.node.compartments.base import folder_in
from runstead.node.compartments.furnishing import furnish
from runstead.node.compartments.plan import Plan
from runstead.node.inside.agent import Agent, listen
from runstead.node.inside.ground import Ground

_OWN_PROCESSES = 2  # of an agent, beside what its programs may have
ENTERED = (
    ("uts", syscalls.CLONE_NEWUTS),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
    ("mnt", syscalls.CLONE_NEWNS),
)


def become(plan: Plan, opened: dict[str, int], report: int) -> None:
    """Be the first process of a compartment, by way of a child; does not return. We are in the attempt's processes."""
    try:
        listener = _enter(plan, opened)
        if os.fork():
            os._exit(0)
        priority.raise_for(0)
        furnish(plan)
        _give_up_rights(plan, opened.get("user"))
        os.write(report, b"R")
        _stay(plan, listener)
    except BaseException as error:
        os.write(report, f"{error}".encode("utf-8", "replace")[:4000])
    os._exit(1)


def _enter(plan: Plan, opened: dict[str, int]) -> socket.socket:
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
    for kind, flag in ENTERED:
        syscalls.enter(opened[kind], flag)
    _make_places(plan)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWPID)
    return listener


def _make_places(plan: Plan) -> None:
    """Make its home and its /tmp, which lie beside those of the others but are shown to it alone."""
    owner = plan.uid + (plan.attempt.owner or 0)
    base = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for name in ("homes", "tmp"):
        parent = folder_in(base, name, 0o711)
        place = folder_in(parent, plan.name, 0o700)
        os.fchown(place, owner, owner)
        os.close(parent)
        os.close(place)
    os.close(base)


def _give_up_rights(plan: Plan, users: int | None) -> None:
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


def _stay(plan: Plan, listener: socket.socket) -> None:
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
