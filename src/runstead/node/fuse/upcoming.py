"""Small files of this node that are likely to be opened next: made ready while no request waits.

Whoever reads a second file of a folder, or of a folder beside it, is taken for somebody who reads them all. The time
that a reader takes for one file is enough to have the next one ready for the kernel when he opens it.
"""

import collections
from collections.abc import Callable

from runstead.node.fuse.tree import Node

_FIRST_FILES = 8
_MOST_FILES = 128
_PLACES = 64  # where it is known how far to go


class Upcoming:
    """The nodes of one mount that are made ready. Whoever calls `opened` has the mount's lock."""

    def __init__(self, following: Callable[[Node, str, int], list[str]], prepare: Callable[[Node], bool]) -> None:
        """`following` names what comes after a name in a folder; `prepare` says whether there is room for more."""
        self._following = following
        self._prepare = prepare
        self._windows: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._nodes: collections.deque[Node] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def opened(self, node: Node) -> None:
        """A small file was opened that was not ready."""
        folder = node.parent
        if folder is None:
            return
        place = (folder.parent or folder).id
        window = self._windows.pop(place, 0)
        self._windows[place] = min(max(_FIRST_FILES, window * 4), _MOST_FILES)
        if len(self._windows) > _PLACES:
            self._windows.popitem(last=False)
        self._nodes.clear()  # he reads something else than was expected
        if window:
            children = folder.children
            self._nodes.extend(
                children[name] for name in self._following(folder, node.name, window) if name in children
            )

    def do(self) -> None:
        """Make one ready."""
        try:
            node = self._nodes.popleft()
        except IndexError:
            return  # somebody has read something else just now
        if not self._prepare(node):
            self._nodes.clear()
