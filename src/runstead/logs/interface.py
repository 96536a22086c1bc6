"""Where the output of jobs is kept.

One job has one log: the logs of its attempts, in order. A line is immutable once it can be read, times never
go backwards, and a replay gives the same lines in the same order for as long as the log is kept. Clients
count on it: they resume by skipping as many lines as they have seen (wire-jobs §9.3).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a job's log from which reading may go on; the start of a line."""

    attempt: int
    offset: int


START = Position(attempt=1, offset=0)


@dataclass(frozen=True, slots=True)
class LogBlock:
    """Some whole lines in their stored form (`runstead.node.logformat`) and the place behind them."""

    lines: bytes
    end: Position


@dataclass(frozen=True, slots=True)
class LogPart:
    """Some whole lines of one attempt in their stored form, the place where they begin and the place behind them."""

    start: Position
    lines: bytes
    end: Position


class LogStore(ABC):
    """Keeps logs. Reading is cheap wherever it begins; no method's cost grows with what was not asked for."""

    @abstractmethod
    def sink(self, job_id: str, attempt: int) -> Path:
        """Return the file that the supervisor of this attempt appends to; its folder exists."""

    @abstractmethod
    async def append(self, job_id: str, attempt: int, texts: Sequence[str], at: datetime) -> None:
        """Add lines of our own to a log that no supervisor writes to."""

    @abstractmethod
    async def read(self, job_id: str, position: Position, limit_bytes: int) -> LogBlock:
        """Return whole lines from `position` on, about `limit_bytes` at most; empty when there are none yet.

        Goes on to the next attempt's log where one exists.
        """

    @abstractmethod
    async def tail(self, job_id: str, count: int) -> Position:
        """Return the place from which on there are `count` lines now, or the start if there are fewer."""

    @abstractmethod
    async def read_back(self, job_id: str, end: Position | None, count: int, limit_bytes: int) -> LogPart:
        """Return the last lines before `end` (None: before the present end of the log), all of one attempt.

        At most `count` of them and about `limit_bytes`; none only where the log begins. `limit_bytes` is larger
        than any line can be.
        """

    @abstractmethod
    async def end_time(self, job_id: str) -> datetime | None:
        """Return the time of the last line, or None for an empty log."""

    @abstractmethod
    async def seal(self, job_id: str, attempt: int) -> None:
        """Make the attempt's log durable; nothing is appended to it afterwards. Idempotent."""

    @abstractmethod
    async def delete(self, job_id: str) -> None:
        """Remove all logs of a job. Idempotent."""
