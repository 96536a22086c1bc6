"""What was registered a moment ago: batches name files right after their upload, a thousand at a time.

To look them up costs three random pages each, which is most of a batch's reading. Registration holds a file as `hold`
does, and what is held is not removed for weeks, so nothing has to be asked again some minutes later.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

_FOR = timedelta(minutes=10)
_MOST = 20_000


class RecentFiles:
    """Sizes of files by scope and hash, for a while. For one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes], tuple[int, datetime]] = OrderedDict()

    def add(self, scope: str, files: Iterable[tuple[bytes, int]], at: datetime) -> None:
        """Remember files that the scope has a claim on and that were held at that time."""
        for file_hash, size in files:
            self._known[scope, file_hash] = size, at
            self._known.move_to_end((scope, file_hash))
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    def sizes(self, scope: str, hashes: Collection[bytes], at: datetime) -> dict[bytes, int]:
        """Return the sizes of those that are known to be held still."""
        found: dict[bytes, int] = {}
        for file_hash in hashes:
            known = self._known.get((scope, file_hash))
            if known is not None and timedelta(0) <= at - known[1] <= _FOR:
                found[file_hash] = known[0]
        return found

    def clear(self) -> None:
        """Forget everything: something was removed."""
        self._known.clear()
