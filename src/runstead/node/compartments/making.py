"""Makes compartments: their user ids, their directories, and a process each that becomes their first."""

import os
import select
import time

from runstead.node import processes, removal, rundir
from runstead.node.compartments.attempt import BASE, FACTS, Attempt
from runstead.node.compartments.base import prepare_base
from runstead.node.compartments.first import ENTERED, Plan, become
from runstead.node.compartments.identities import take_uids
from runstead.node.compartments.removing import remove_all
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_AT_ONCE = 8
_READY_SECONDS = 30.0


def make_all(wanted: "dict[str, None]", message: "dict[str, Any]", attempt: Attempt) -> "list[dict[str, Any]]":
    """Make those that are missing, all or none; return the facts of all. Raises Refusal, OSError."""
    there = {one: rundir.read_json(os.path.join(attempt.place(one), FACTS)) for one in wanted}
    missing = [one for one, facts in there.items() if facts is None]
    if missing:
        networks = dict(zip(message["ids"], message.get("networks") or [], strict=False))
        hosts = message.get("hosts")
        prepare_base(attempt)
        try:
            _make(missing, networks, message["limits"], hosts, attempt)
        except BaseException:
            remove_all(missing, attempt, unfinished=True)
            raise
    return [rundir.read_json(os.path.join(attempt.place(one), FACTS)) or {} for one in wanted]


def _make(
    ids: list[str], networks: "dict[str, list[str]]", limits: "dict[str, Any]", hosts: str | None, attempt: Attempt
) -> None:
    uid = take_uids(attempt, len(ids))
    opened = {kind: attempt.namespace(kind) for kind, _ in ENTERED}
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
        facts["confined"] = hosts is not None
        rundir.write_json(os.path.join(path, "plan.json"), facts)
        ready, report = os.pipe()
        if os.fork() == 0:
            os.close(ready)
            become(Plan(one, uid + number, network, limits, attempt, hosts), opened, report)
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
