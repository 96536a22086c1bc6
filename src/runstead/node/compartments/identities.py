"""The user ids of compartments: each has one that no other of its attempt has."""

import os

from runstead.node import rundir
from runstead.node.compartments.attempt import FACTS, FOLDER, Attempt
from runstead.node.inside.refusal import UNAVAILABLE, Refusal

_FIRST_ID, _LAST_ID = 20000, 60000
_AT_ONCE = 64  # taken from the file, for the requests to come


class Identities:
    """Gives them out, those of an attempt at one place at a time. Nobody gets one that a killed maker gave out."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._ours = range(0)  # nobody has them, and nobody else gives them out

    def take(self, count: int) -> int:
        """Return the first of so many ids in a row that nobody has. Raises Refusal, OSError."""
        if len(self._ours) < count:
            self._ours = self._reserve(max(count, _AT_ONCE)) or self._reserve(count)
        if not self._ours:
            raise Refusal(UNAVAILABLE, "all user ids of the attempt are taken")
        first = self._ours[0]
        self._ours = self._ours[count:]
        return first

    def _reserve(self, count: int) -> range:
        """Take so many from the file; none if there are not as many in a row."""
        path = os.path.join(self._attempt.path, FOLDER, "next")
        first = int((rundir.read_json(path) or {}).get("uid", _FIRST_ID))
        if first + count > _LAST_ID:
            first = _FIRST_ID  # those of long ago are gone by now, but for some
            taken = self._taken()
            while first + count <= _LAST_ID and not taken.isdisjoint(range(first, first + count)):
                first += 1
        if first + count > _LAST_ID:
            return range(0)
        rundir.write_json(path, {"uid": first + count})
        return range(first, first + count)

    def _taken(self) -> set[int]:
        names = os.listdir(os.path.join(self._attempt.path, FOLDER))
        found = (rundir.read_json(os.path.join(self._attempt.place(name), FACTS)) for name in names)
        return {int(facts["uid"]) for facts in found if facts is not None}
