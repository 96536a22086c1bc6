"""What jobs cost, as whole millionths of the site's currency, so that sums are exact.

The wire calls these millionths `MicroUSD`; a site may mean anything by them. Months are those of UTC.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

MICRO = 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_MINUTE = 60 * MICRO


@dataclass(frozen=True, slots=True)
class Span:
    """The time that an attempt ran."""

    began_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Share:
    """What of an attempt falls into one month."""

    month: int
    used: timedelta
    cost_micro_usd: int


class UsageBy(StrEnum):
    """What use may be told apart by."""

    MONTH = "month"
    NAMESPACE = "namespace"
    USER = "user"
    FLAVOR = "flavor"
    LABEL = "label"
    SCHEDULE = "schedule"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which use is asked for, and what it is told apart by."""

    by: tuple[UsageBy, ...]
    months: tuple[int, int]  # first and last
    namespace: str | None = None  # None: all
    label: str | None = None  # by label: that of this key alone; None: by all labels, also several of one job


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The use that has these values in common, in the order of what it is told apart by."""

    values: tuple[str, ...]
    attempts: int  # a part in each month counts in each
    running: int  # of these, how many run still; they count until now
    used: timedelta
    cost_micro_usd: int


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a namespace may spend in a month, and what it has spent in the present one.

    `reserved` is what its jobs that are not over may still cost.
    """

    namespace: str
    limit_micro_usd: int
    spent_micro_usd: int
    reserved_micro_usd: int


def cost_micro_usd(price_micro_usd: int, used: timedelta) -> int:
    """Return what a time costs at a price per minute, rounded up."""
    return -(-price_micro_usd * max(used // _MICROSECOND, 0) // _MINUTE)


def highest_cost_micro_usd(price_micro_usd: int, timeout_seconds: int, attempts: int) -> int:
    """Return what that many attempts may cost, each until its time limit."""
    return cost_micro_usd(price_micro_usd, timedelta(seconds=timeout_seconds)) * attempts


def shares(price_micro_usd: int, span: Span) -> Iterator[Share]:
    """Divide the time of an attempt into months. The parts add up to the whole, their costs too."""
    start, end = span.began_at.astimezone(UTC), span.ended_at.astimezone(UTC)
    told = 0
    began = start
    while began < end:
        until = min(end, _next_month(began))
        so_far = cost_micro_usd(price_micro_usd, until - start)
        yield Share(month_of(began), until - began, so_far - told)
        told, began = so_far, until


def month_of(at: datetime) -> int:
    """Return the month of an instant as a number: 202611 for November 2026."""
    at = at.astimezone(UTC)
    return at.year * 100 + at.month


def _next_month(at: datetime) -> datetime:
    first = datetime(at.year, at.month, 1, tzinfo=UTC)
    return (first + timedelta(days=32)).replace(day=1)


def money(micro_usd: int) -> str:
    """Return an amount for people: at least two digits behind the point, and no more than it has."""
    whole, rest = divmod(abs(micro_usd), MICRO)
    digits = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro_usd < 0 else ''}${whole:,}.{digits}"
