"""The user ids of compartments: each has one that no other of its attempt has."""

import os

from runstead.node import rundir
from runstead.node.compartments.attempt import Attempt
from runstead.node.compartments.entry import list_in
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
        path = os.path.join(self._attempt.folder, "next")
        known = rundir.read_json(path) or {}
        first, again = int(known.get("uid", _FIRST_ID)), bool(known.get("again"))
        if first + count > _LAST_ID:
            first, again = _FIRST_ID, True
        if again:  # those of long ago are gone by now, but for some
            first = self._first_free(first, count) or self._first_free(_FIRST_ID, count)
            if not first:
                return range(0)
        rundir.write_json(path, {"uid": first + count, "again": again})
        return range(first, first + count)

    def _first_free(self, first: int, count: int) -> int:
        """Return where so many in a row that nobody has begin; 0 if there are none from `first` on."""
        taken = self._taken()
        for at in range(first, _LAST_ID - count + 1):
            if taken.isdisjoint(range(at, at + count)):
                return at
        return 0

    def _taken(self) -> set[int]:
        return {entry.uid for entry in list_in(self._attempt.folder).values()}
