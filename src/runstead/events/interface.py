"""Wake-ups between parts, also between replicas. An event carries no news, only that there may be some.

Whoever waits for an event also polls slowly: events may be lost, and the store is what tells.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from runstead.kit.wakeup import Wakeup

JOBS = "jobs"  # a job's row changed; the key is its id
WORK = "work"  # a job should be looked at: its attempt changed, or its cancellation was asked for; the key is its id
LOGS = "logs"  # a job's log grew or was sealed; the key is the job's id
BUCKETS = "buckets"  # files of a bucket changed, or who may see it; the key is its id
SCHEDULES = "schedules"  # when a schedule runs next changed; the key is its id
QUEUE = "queue"  # a job may be admitted now; no key


class EventBus(ABC):
    """Publishes and delivers wake-ups. Loses them rather than block."""

    @abstractmethod
    def publish(self, topic: str, key: str = "") -> None:
        """Wake who waits for `topic` with this key, or for all of the topic. Must be called on the event loop."""

    @abstractmethod
    def subscribe(self, topic: str, key: str | None = None) -> AbstractContextManager[Wakeup]:
        """Collect wake-ups of `topic` (of one `key`, or of all) while the context is open."""
