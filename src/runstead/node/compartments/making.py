"""Makes compartments: their user ids, their directories, and a process each that becomes their first."""

import os
import select
import time

from runstead.node import rundir, syscalls
from runstead.node.compartments.attempt import FACTS, Attempt
from runstead.node.compartments.base import prepare_base
from runstead.node.compartments.first import ENTERED, READY, become
from runstead.node.compartments.identities import take_uids
from runstead.node.compartments.plan import Plan
from runstead.node.compartments.removing import remove_all
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READY_SECONDS = 30.0


def make_all(wanted: "dict[str, None]", message: "dict[str, Any]", attempt: Attempt) -> "list[dict[str, Any]]":
    """Make those that are missing, all or none; return the facts of all. Raises Refusal, OSError."""
    found = {one: rundir.read_json(os.path.join(attempt.place(one), FACTS)) for one in wanted}
    missing = [one for one, facts in found.items() if facts is None]
    if missing:
        prepare_base(attempt)
        try:
            found.update(_make(missing, message, attempt))
        except BaseException:
            remove_all(missing, attempt, unfinished=True)
            raise
    return [found[one] or {} for one in wanted]


def _make(ids: list[str], message: "dict[str, Any]", attempt: Attempt) -> "dict[str, dict[str, Any]]":
    networks = dict(zip(message["ids"], message.get("networks") or [], strict=False))
    hosts = message.get("hosts")
    uid = take_uids(attempt, len(ids))
    opened = {kind: attempt.namespace(kind) for kind, _ in ENTERED}
    if attempt.owner is not None:
        opened["user"] = attempt.namespace("user")
    plans: list[Plan] = []
    for number, one in enumerate(ids):
        network, _ = networks.get(one) or (None, None)
        plans.append(Plan(one, uid + number, network, message["limits"], attempt, hosts))
        plans[-1].prepare()
    _start(plans, opened)
    made: dict[str, dict[str, Any]] = {}
    for plan in plans:
        _, address = networks.get(plan.name) or (None, None)
        made[plan.name] = {
            "id": plan.name,
            "uid": plan.uid,
            "home": plan.home,
            "address": address,
            "at": time.time(),
            "confined": hosts is not None,
        }
        rundir.write_json(os.path.join(attempt.place(plan.name), FACTS), made[plan.name])
    return made


def _start(plans: list[Plan], opened: dict[str, int]) -> None:
    """Fork their first processes and return when all of them serve. Raises Refusal, OSError.

    They are our children for as long as we live, which is not long, and then those of the attempt's first process.
    """
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    ready, report = os.pipe()
    for plan in plans:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        if os.fork() == 0:
            os.close(ready)
            become(plan, opened, report)
        syscalls.enter(ours, syscalls.CLONE_NEWPID)
        plan.close()
    os.close(ours)
    os.close(report)
    _await_ready(ready, len(plans))
    os.close(ready)


def _await_ready(ready: int, count: int) -> None:
    """Wait until so many serve. Raises Refusal when one of them cannot be made."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    until = time.monotonic() + _READY_SECONDS
    while count:
        if not poll.poll(max(until - time.monotonic(), 0) * 1000):
            raise Refusal(UNAVAILABLE, "a part of the job is not closed off in time")
        said = os.read(ready, 4096)
        if not said or said.strip(READY):
            why = said.strip(READY).decode("utf-8", "replace") or "its first process died"
            raise Refusal(UNAVAILABLE, f"a part of the job cannot be closed off: {why}")
        count -= len(said)
