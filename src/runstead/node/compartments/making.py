"""Makes compartments: their user ids, their directories, and a process each that becomes their first."""

import os
import select
import time

from runstead.node import rundir
from runstead.node.compartments.attempt import FACTS
from runstead.node.compartments.first import READY, become
from runstead.node.compartments.furnishing import furnish
from runstead.node.compartments.plan import Plan
from runstead.node.compartments.removing import remove_all
from runstead.node.compartments.workshop import Workshop
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READY_SECONDS = 30.0


def make_all(wanted: "dict[str, None]", message: "dict[str, Any]", shop: Workshop) -> "list[dict[str, Any]]":
    """Make those that are missing, all or none; return the facts of all. Raises Refusal, OSError."""
    found = {one: rundir.read_json(os.path.join(shop.attempt.place(one), FACTS)) for one in wanted}
    missing = [one for one, facts in found.items() if facts is None]
    if missing:
        shop.base()
        try:
            found.update(_make(missing, message, shop))
        except BaseException:
            remove_all(missing, shop, unfinished=True)
            raise
    return [found[one] or {} for one in wanted]


def _make(ids: list[str], message: "dict[str, Any]", shop: Workshop) -> "dict[str, dict[str, Any]]":
    networks = dict(zip(message["ids"], message.get("networks") or [], strict=False))
    hosts = message.get("hosts")
    uid = shop.identities.take(len(ids))
    plans: list[Plan] = []
    try:
        for number, one in enumerate(ids):
            network, _ = networks.get(one) or (None, None)
            plans.append(Plan(one, uid + number, network, message["limits"], shop.attempt, hosts))
            plans[-1].prepare(shop.undivided)
        _start(plans, shop)
    finally:
        for plan in plans:
            plan.close()
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
        rundir.write_json(os.path.join(shop.attempt.place(plan.name), FACTS), made[plan.name])
    return made


def _start(plans: list[Plan], shop: Workshop) -> None:
    """Fork their first processes and return when all of them serve. Raises Refusal, OSError.

    Each begins where it is to be: what can be done about that before the fork is, for in a process that was just forked
    all that is touched has to be copied first.
    """
    ready, report = os.pipe()
    try:
        for plan in plans:
            shop.base().make(plan.name, plan.uid + (plan.attempt.owner or 0))
            try:
                shop.crossing.become_separate(plan.network)
                furnish(plan)
                pid = os.fork()
                if pid == 0:
                    os.close(ready)
                    become(plan, shop.crossing.users, shop.hidden, report)
            finally:
                shop.crossing.come_back()
            shop.note_first(plan.name, pid)
        os.close(report)
        report = -1
        _await_ready(ready, len(plans))
    finally:
        os.close(ready)
        if report >= 0:
            os.close(report)


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
