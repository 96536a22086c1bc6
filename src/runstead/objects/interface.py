"""What an object store promises: immutable bytes under opaque keys, whole or not there at all.

Every method blocks and may be called from any thread at once; call them away from the event loop. Errors:
`NotFound` for a key that is not there, `Unavailable` when the same call may succeed later (full, unreachable),
`BackendFailure` for anything else. A key is one or more parts joined by `/`, each of lower case letters, digits,
`-`, `_` and `.`, beginning with a letter or digit; any other is a `BackendFailure`, before anything is touched.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from runstead.model.errors import BackendFailure

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*", re.ASCII)
_LONGEST_KEY = 512


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it is listed."""

    key: str
    size: int
    modified_at: datetime


class ObjectStore(ABC):
    """Keeps objects."""

    @abstractmethod
    def new_staged(self) -> Path:
        """Return the path of a new, empty file of this machine, where the bytes of an object to be put can grow.

        The caller removes it unless `put` took it; what a crash leaves is removed by `clear_staged`.
        """

    @abstractmethod
    def clear_staged(self) -> None:
        """Remove all staged files. To be called once at start, by the one server of this data directory."""

    @abstractmethod
    def put(self, key: str, staged: Path) -> None:
        """Make the staged file the object with this key; the file is gone afterwards.

        The object is durable when this returns and never seen in part, whatever happens. An object that is there
        already stays as it is. After an error the staged file may or may not be there.
        """

    @abstractmethod
    def read(self, key: str, start: int, end: int) -> bytes:
        """Return exactly the bytes from `start` up to `end` (exclusive); BackendFailure if the object is shorter."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the size in bytes, None if there is no such object."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose key begins with the parts of `prefix` ("" for all), in any order.

        What is put or deleted meanwhile may be in it or not.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object. One that is not there is no error."""

    @abstractmethod
    def url(self, key: str, seconds: int) -> str | None:
        """Return a URL by which anybody can GET the object, with ranges, for that long; None if there is none."""


def check_key(key: str) -> str:
    """Return the key. Raises BackendFailure for one that no object can have."""
    if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
        raise BackendFailure(f"not the key of an object: {key[:80]!r}")
    return key
