"""The user ids of compartments: each has one that no other of its attempt has."""

import os

from runstead.node import rundir
from runstead.node.compartments.attempt import FACTS, FOLDER, Attempt
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIRST_ID, _LAST_ID = 20000, 60000


def take_uids(attempt: Attempt, count: int) -> int:
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
