"""A latch that collects wake-ups with their keys until somebody takes them."""

import asyncio


class Wakeup:
    """Collects keys; `wait` returns as soon as there is one, or at the time limit."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._event = asyncio.Event()

    def notify(self, key: str = "") -> None:
        """Add a key and wake the waiter."""
        self._keys.add(key)
        self._event.set()

    async def wait(self, timeout_seconds: float | None = None) -> frozenset[str]:
        """Take the collected keys, waiting for the first at most `timeout_seconds`; empty when none came."""
        if not self._keys and timeout_seconds != 0:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._event.wait()
            except TimeoutError:
                return frozenset()
        self._event.clear()
        keys, self._keys = frozenset(self._keys), set()
        return keys
