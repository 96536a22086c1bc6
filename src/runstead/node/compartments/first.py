"""The first process of a compartment: what it enters, gives up, and then serves."""

import os
import select
import socket

from runstead.node import cgroups, command, namespaces, priority, processes, seccomp, syscalls
from runstead.node.compartments.attempt import BASE
from runstead.node.compartments.base import folder_in
from runstead.node.compartments.furnishing import furnish
from runstead.node.compartments.plan import Plan
from runstead.node.inside.agent import Agent
from runstead.node.inside.ground import Ground

READY = b"\0"
ENTERED = (
    ("uts", syscalls.CLONE_NEWUTS),
    ("cgroup", syscalls.CLONE_NEWCGROUP),
    ("mnt", syscalls.CLONE_NEWNS),
)


def become(plan: Plan, opened: dict[str, int], report: int) -> None:
    """Be the first process of a compartment; does not return. We are that of its process namespace already.

    To `report` goes READY, or why it cannot be.
    """
    try:
        priority.raise_for(0)
        _enter(plan, opened)
        furnish(plan)
        _give_up_rights(plan, opened.get("user"))
        os.write(report, READY)
        _stay(plan)
    except BaseException as error:
        os.write(report, f"{error}".encode("utf-8", "replace")[:4000] or b"?")
    os._exit(1)


def _enter(plan: Plan, opened: dict[str, int]) -> None:
    plan.attempt.group.undivided().enter_alone()
    cgroups.enter_opened(plan.groups)
    command.forget_score()
    if plan.network is not None:
        syscalls.enter(plan.network, syscalls.CLONE_NEWNET)
    else:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        namespaces.raise_loopback()
    for kind, flag in ENTERED:
        syscalls.enter(opened[kind], flag)
    _make_places(plan)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)


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


def _stay(plan: Plan) -> None:
    """Serve and reap until the end of the attempt, or of the compartment: both come from outside."""
    null = os.open("/dev/null", os.O_RDWR)
    mine = os.dup(plan.listener.fileno())
    for target, fd in enumerate((null, null, null, mine)):
        os.dup2(fd, target, inheritable=target < 3)
    plan.listener.detach()
    syscalls.close_from(4)
    ground = Ground(
        environment={},
        folder=plan.home,
        own_network=True,
        own_ids=False,
        rooted=True,
        processes=plan.limits["processes"] if plan.attempt.owner is not None else None,
    )
    children = processes.watch_children()
    poll = select.poll()
    poll.register(children, select.POLLIN)
    agent = Agent(socket.socket(fileno=3), ground, poll, attends=True)
    while True:
        for fd, event in poll.poll(agent.wait_millis()):
            if fd != children:
                agent.handle(fd, event)
                continue
            os.read(children, 512)
            for pid, status in processes.reap_all():
                agent.reaped(pid, status)
        agent.look()
