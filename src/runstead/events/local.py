"""Events inside one server process."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

from runstead.events.interface import EventBus
from runstead.kit.wakeup import Wakeup


class LocalEventBus(EventBus):
    """Delivers at once, to subscribers on the same event loop."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str], set[Wakeup]] = {}
        self._by_topic: dict[str, set[Wakeup]] = {}

    def publish(self, topic: str, key: str = "") -> None:
        """Wake the subscribers of the key and those of the whole topic."""
        for wakeup in self._by_key.get((topic, key), ()):
            wakeup.notify(key)
        for wakeup in self._by_topic.get(topic, ()):
            wakeup.notify(key)

    def subscribe(self, topic: str, key: str | None = None) -> AbstractContextManager[Wakeup]:
        """Collect wake-ups while the context is open."""
        return self._of_topic(topic) if key is None else self._of_key(topic, key)

    @contextmanager
    def _of_topic(self, topic: str) -> Generator[Wakeup]:
        wakeup = Wakeup()
        subscribers = self._by_topic.setdefault(topic, set())
        subscribers.add(wakeup)
        try:
            yield wakeup
        finally:
            subscribers.discard(wakeup)

    @contextmanager
    def _of_key(self, topic: str, key: str) -> Generator[Wakeup]:
        wakeup = Wakeup()
        self._by_key.setdefault((topic, key), set()).add(wakeup)
        try:
            yield wakeup
        finally:
            subscribers = self._by_key[topic, key]
            subscribers.discard(wakeup)
            if not subscribers:
                del self._by_key[topic, key]
