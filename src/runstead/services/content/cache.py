"""A cache bounded by the bytes it holds."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps what was used last, up to a number of bytes. For one thread."""

    def __init__(self, limit_bytes: int, size_of: Callable[[V], int]) -> None:
        self._limit = limit_bytes
        self._size_of = size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def get(self, key: K) -> V | None:
        """Return a value if it is kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value."""
        self.drop(key)
        self._values[key] = value
        self._bytes += self._size_of(value)
        while self._bytes > self._limit:
            _, oldest = self._values.popitem(last=False)
            self._bytes -= self._size_of(oldest)

    def drop(self, key: K) -> None:
        """Forget a value."""
        value = self._values.pop(key, None)
        if value is not None:
            self._bytes -= self._size_of(value)
