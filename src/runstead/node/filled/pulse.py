"""Whether work goes on: a transfer in which nothing moves for long is ended, and so is all work at its deadline."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

STALL_SECONDS = 120.0
_LOOK_SECONDS = 1.0


class Pulse:
    """Calls `give_up` with the reason, from a thread of its own, once there is one."""

    def __init__(self, within_seconds: float | None, give_up: Callable[[str], None]) -> None:
        self._began = time.monotonic()
        self._within = within_seconds
        self._give_up = give_up
        self._last = self._began
        self._local = 0

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, daemon=True, name="pulse").start()

    def beat(self) -> None:
        """Something moved."""
        self._last = time.monotonic()

    @contextmanager
    def local_work(self) -> Generator[None]:
        """Work that waits for nobody; it takes what it takes."""
        self._local += 1
        try:
            yield
        finally:
            self._local -= 1
            self.beat()

    @property
    def seconds_left(self) -> float:
        """How long the work may still take."""
        return float("inf") if self._within is None else self._within - (time.monotonic() - self._began)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            if self.seconds_left <= 0:
                self._give_up(f"it took longer than {self._within:g} s")
            elif not self._local and time.monotonic() - self._last > STALL_SECONDS:
                self._give_up(f"nothing moved for {STALL_SECONDS:g} s")
