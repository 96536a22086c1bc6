"""Small files that are likely to be read next: fetched many at a time, before anybody asks for them.

Who opens one file of a folder gets that file. Who opens a second one there, or in a folder beside it, is taken for
somebody who reads them all: what follows by name comes with it, more each time, as the kernel reads ahead within a
file. What is fetched in vain is bounded by what was read before.
"""

import bisect
import collections
import threading
from collections.abc import Callable, Sequence

from runstead.node.fuse.cache import Cache, CachedFile, Filling
from runstead.node.fuse.source import Content, Piece, Source
from runstead.node.fuse.tree import Node

SMALL_BYTES = 1 << 20  # larger files are worth requests of their own
_FIRST_FILES = 8
_MOST_FILES = 128  # of one round
_MOST_BYTES = 16 << 20
_CACHE_SHARE = 16  # a round is no larger than such a part of the cache
_ROUNDS = 2  # at a time: who waits for a file of his own is to find a free thread
_PLACES = 64  # where it is known how far ahead to read, and where readers are expected


class Ahead:
    """What is read ahead in one mount. Whoever calls `missed` or `opened` has the mount's lock."""

    def __init__(self, source: Source, cache: Cache) -> None:
        self._source = source
        self._cache = cache
        self._windows: collections.OrderedDict[int, int] = collections.OrderedDict()  # by folder: files of the next
        self._expected: collections.OrderedDict[bytes, tuple[Node, str]] = collections.OrderedDict()
        self._names: tuple[dict[str, Content | None], int, list[str]] = ({}, 0, [])  # of the folder read last, sorted
        self._lock = threading.Lock()
        self._rounds = 0

    def missed(self, node: Node) -> None:
        """A small file is opened that has to be fetched first."""
        if node.parent is not None:
            self._go_on(node.parent, node.name)

    def opened(self, content: Content) -> None:
        """A small file is opened that is here."""
        if content.file_hash in self._expected:  # its reader has used half of what was fetched for him
            folder, name = self._expected.pop(content.file_hash)
            self._go_on(folder, name)

    def _go_on(self, folder: Node, name: str) -> None:
        """Fetch what follows a name in a folder."""
        place = (folder.parent or folder).id
        window = self._windows.pop(place, 0)
        self._windows[place] = min(max(_FIRST_FILES, window * 4), _MOST_FILES)
        if len(self._windows) > _PLACES:
            self._windows.popitem(last=False)
        if window == 0 or self._rounds >= _ROUNDS:
            return
        chosen = self._choose(folder, name, window)
        if not chosen:
            return
        middle = chosen[len(chosen) // 2][1]
        self._expected[middle.file_hash] = folder, chosen[-1][0]
        if len(self._expected) > _PLACES:
            self._expected.popitem(last=False)
        with self._lock:
            self._rounds += 1
        self._cache.fetchers.submit(lambda: self._fetch([content for _, content in chosen]))

    def following(self, folder: Node, after: str, most: int) -> list[str]:
        """Return the names of the store that follow one in a folder."""
        listing, count, names = self._names
        if listing is not folder.listing or count != len(listing):
            names = sorted(folder.listing)
            self._names = folder.listing, len(names), names
        begin = bisect.bisect_right(names, after)
        return names[begin : begin + most]

    def _choose(self, folder: Node, after: str, most: int) -> "list[tuple[str, Content]]":
        found: list[tuple[str, Content]] = []
        left = min(_MOST_BYTES, self._cache.limit_bytes // _CACHE_SHARE)
        for name in self.following(folder, after, 2 * most):
            content = folder.listing.get(name)
            if content is None or not 0 < content.size <= SMALL_BYTES or self._cache.has_whole(content):
                continue
            left -= content.size
            if left < 0 or len(found) == most:
                break
            found.append((name, content))
        return found

    def _fetch(self, contents: "list[Content]") -> None:
        taken: dict[bytes, _Awaited] = {}
        try:
            for content in contents:
                if content.file_hash not in taken:
                    awaited = _Awaited.of(self._cache, content)
                    if awaited is not None:
                        taken[content.file_hash] = awaited
            if taken:
                self._source.fetch_many(
                    [awaited.content for awaited in taken.values()],
                    lambda content, pieces: taken[content.file_hash].take(pieces),
                )
        except OSError:
            self._windows.clear()  # whoever needs one of them asks for it, and is told
        finally:
            for awaited in taken.values():
                awaited.end()
            with self._lock:
                self._rounds -= 1


class _Awaited:
    """A file that is being fetched with others."""

    def __init__(self, cache: Cache, file: CachedFile, let_go: Callable[[], None]) -> None:
        self.content = file.content
        self._cache = cache
        self._file = file
        self._let_go = let_go
        self._filling = Filling(file, 0, file.content.size)
        self._ended = False

    @classmethod
    def of(cls, cache: Cache, content: Content) -> "_Awaited | None":
        """Return None for a file that is here, or on its way, already."""
        file = cache.take(content)
        let_go = file.reserve()
        if let_go is None:
            cache.drop(file)
            return None
        return cls(cache, file, let_go)

    def take(self, pieces: Sequence[Piece]) -> None:
        """Take chunks of it; with the last one it is there for who waits."""
        if not self._ended:
            self._filling.take(pieces)
            if self._file.is_filled:
                self.end()

    def end(self) -> None:
        """It is here, or does not come."""
        if not self._ended:
            self._ended = True
            self._let_go()
            self._cache.drop(self._file)
