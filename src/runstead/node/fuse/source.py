"""Where a mounted tree comes from, as the mount knows it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from runstead.xet.hashes import ZERO_HASH


class Content(NamedTuple):
    """A file as the store has it: its bytes never change, another version is another content."""

    file_hash: bytes
    size: int
    mtime_ns: int


EMPTY = ZERO_HASH

Folder = dict[str, Content | None]
"""The names of one folder; None stands for a folder."""

Changed = Callable[[str | None, bytes | None], None]
"""Is told of a path and the file it has now, None for none; a path of None says that anything may have changed."""


class Piece(NamedTuple):
    """One chunk of a file, unpacked; `hash` is of all of it. Its bytes are there until whoever was told returns."""

    offset: int
    data: memoryview
    hash: bytes


class Change(NamedTuple):
    """What a path shall be from now on; without a content it shall be absent."""

    path: str
    content: Content | None


class Source(ABC):
    """A tree of files in a store. Paths are relative to what is mounted; "" is all of it.

    Every method may wait, but no longer than a stated time, and raises OSError with the number that a program is to
    be told: ENOENT for what is not there, EACCES for what this token may not have, EIO for a store that fails.
    """

    @abstractmethod
    def level(self, path: str, *, hurry: bool = False) -> Folder:
        """Return one level of the tree; empty for a folder that is not there. In a hurry it is tried only once."""

    @abstractmethod
    def all_below(self, path: str) -> Mapping[str, Content]:
        """Return every file below a folder, by its path."""

    @abstractmethod
    def fetch(self, content: Content, start: int, end: int, take: Callable[[Sequence[Piece]], None]) -> None:
        """Hand over the chunks that hold these bytes, some at a time, each as often as it occurs, nearly in order."""

    @abstractmethod
    def fetch_many(self, contents: Sequence[Content], take: Callable[[Content, Sequence[Piece]], None]) -> None:
        """Hand over the chunks of several small files, whole, in whatever order; what is missing is left out.

        It is tried only once: nobody has asked for them yet.
        """

    @abstractmethod
    def apply(self, changes: Sequence[Change]) -> list[tuple[str, str]]:
        """Carry out changes, all at once, their content being uploaded; return (path, reason) of the refused."""

    @abstractmethod
    def follow(self, changed: Changed, live: Callable[[bool], None], stopped: Callable[[], bool]) -> None:
        """Tell of every path that changes, until stopped; `live` is told whether anybody listens to the store."""
