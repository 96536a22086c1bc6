"""The first process of a compartment: what it enters, gives up, and then serves."""

import os
import select
import socket

from runstead.node import cgroups, namespaces, priority, processes, seccomp, syscalls
from runstead.node.compartments.plan import Plan
from runstead.node.inside.agent import Agent
from runstead.node.inside.ground import Ground
from runstead.node.roots import parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

READY = b"\0"


def become(plan: Plan, users: int | None, hidden: list[str], report: int) -> "NoReturn":
    """Be the first process of a compartment; does not return. We are that, in its namespaces and its home, already.

    `users` is a user namespace to be entered, `hidden` what of /proc is not to be seen. To `report` goes READY, or why
    it cannot be.
    """
    try:
        priority.raise_for(0)
        cgroups.enter_opened(plan.groups)
        parts.processes_for_nobody("/proc", hidden)  # only from here can be seen who it is about
        _give_up_rights(plan, users)
        os.write(report, READY)
        _stay(plan)
    except BaseException as error:
        os.write(report, f"{error}".encode("utf-8", "replace")[:4000] or b"?")
    os._exit(1)


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
    assert plan.listener is not None
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
