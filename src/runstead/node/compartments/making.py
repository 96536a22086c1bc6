"""Makes compartments: their user ids, their directories, and a process each that becomes their first."""

import os
import select
import time

from runstead.node.compartments.entry import Entry
from runstead.node.compartments.first import READY, become
from runstead.node.compartments.furnishing import furnish
from runstead.node.compartments.plan import Plan, unfinished
from runstead.node.compartments.removing import remove_all
from runstead.node.compartments.workshop import Workshop
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READY_SECONDS = 30.0


def make_all(wanted: "dict[str, None]", message: "dict[str, Any]", shop: Workshop) -> list[str]:
    """Make those that are missing, all or none; return what all are called. Raises Refusal, OSError."""
    missing = [one for one in wanted if one not in shop.entries]
    if missing:
        shop.base()
        try:
            _make(missing, message, shop)
        except BaseException:
            remove_all(missing, shop, half_made=True)
            raise
    return [shop.entries[one].name for one in wanted]


def _make(ids: list[str], message: "dict[str, Any]", shop: Workshop) -> None:
    networks = dict(zip(message["ids"], message.get("networks") or [], strict=False))
    hosts = message.get("hosts")
    uid = shop.identities.take(len(ids))
    plans: list[Plan] = []
    try:
        for number, one in enumerate(ids):
            network, address = networks.get(one) or (None, None)
            entry = Entry(one, uid + number, address, confined=hosts is not None)
            plans.append(Plan(entry, network, message["limits"], shop.attempt, hosts))
            plans[-1].prepare(shop.undivided)
        _start(plans, shop)
    finally:
        for plan in plans:
            plan.close()
    folder = shop.attempt.folder
    for plan in plans:
        os.rename(os.path.join(folder, unfinished(plan.name)), os.path.join(folder, plan.entry.name))
        shop.entries[plan.name] = plan.entry


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
