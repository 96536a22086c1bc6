"""When a schedule is due: the Hub's grammar of schedules, and the instants that an expression means.

The grammar is the Hub's (wire-jobs §17): an alias, or five to seven fields, each a number, `*`, a list of numbers, a
step `*/n` or `n/m`, or a range `a-b`; no names and no steps of ranges, so that what runs here runs there. Five fields
are minute, hour, day of the month, month and day of the week; six have seconds in front, and a seventh behind is the
year. If both days are restricted (neither begins with `*`), either will do, as in every cron.

Where clocks are changed, a schedule of *every* hour follows elapsed time: an hour that comes twice has its runs twice,
and one that is left out has none. Any other follows the calendar: a time that comes twice is due the first time, and
one that is left out is due when the clock jumps. So a nightly run never falls out and never comes twice.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from runstead.model.errors import Invalid

ALIASES = {
    "@annually": "0 0 1 1 *",
    "@yearly": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 7),
    ("year", 1970, 2999),
)
_LONGEST = 500
_TERM = re.compile(r"\*|\*/(\d{1,4})|(\d{1,4})/(\d{1,4})|(\d{1,4})-(\d{1,4})|\d{1,4}(?:,\d{1,4})*", re.ASCII)
_FORM = "a number, '*', a list like 1,2, a step like */5 or 3/5, or a range like 1-5"
_FIELD = "schedule"


@dataclass(frozen=True, slots=True)
class Cron:
    """The due instants of an expression in a time zone."""

    expression: str
    zone: ZoneInfo
    _fields: tuple[str, ...] = field(repr=False)  # six, as cronsim takes them
    _years: frozenset[int] | None = field(repr=False)
    _by_elapsed_time: bool = field(repr=False)

    def after(self, instant: datetime) -> datetime | None:
        """Return the first due instant later than `instant` (aware), in UTC; None if there is none any more."""
        return _after(self, instant)

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the due instants later than `after` and not later than `until`, in UTC, earliest first."""
        for due in self.following(after):
            if due > until:
                return
            yield due

    def latest(self, since: datetime, until: datetime, count: int) -> list[datetime]:
        """Return the last `count` due instants from `since` to `until`, earliest first.

        It looks at little more than those, however many there are in between.
        """
        window = timedelta(minutes=1)
        while True:
            start = max(until - window, since - timedelta(microseconds=1))
            found = deque(self.between(start, until), maxlen=count)
            if len(found) == count or start < since:
                return list(found)
            window *= 4

    def following(self, instant: datetime) -> Iterator[datetime]:
        """Yield all due instants later than `instant`, in UTC, earliest first."""
        last = instant.astimezone(UTC)
        for local in self._local_times(last.astimezone(self.zone)):
            due = _as_instant(local, self.zone)
            # Several times that a clock jumps over are one instant.
            if due > last:
                yield due
                last = due

    def _local_times(self, start: datetime) -> Iterator[datetime]:
        """Yield the times on the clock that the expression means: aware ones if it follows elapsed time."""
        expression = " ".join(self._fields)
        if not self._by_elapsed_time:
            # The clock may show an hour a second time by now; what of it was due comes out earlier than `start`.
            start = start.replace(tzinfo=None)
            if _is_second_time(start, self.zone):
                start -= timedelta(hours=2)
        while True:
            for found in CronSim(expression, start):
                if self._years is None or found.year in self._years:
                    yield found
                    continue
                following = min((year for year in self._years if year > found.year), default=None)
                if following is None:
                    return
                start = found.replace(
                    year=following, month=1, day=1, hour=0, minute=0, second=0, microsecond=0
                ) - timedelta(seconds=1)
                break
            else:
                return


@lru_cache(maxsize=1_000)
def _after(cron: Cron, instant: datetime) -> datetime | None:
    """Remember the answer: many schedules are due at the same instants."""
    return next(cron.following(instant), None)


@lru_cache(maxsize=20_000)
def parse(expression: str, zone: ZoneInfo) -> Cron:
    """Return the schedule that an expression means. Raises Invalid that says what is wrong."""
    text = expression.replace("\t", " ").strip(" ")
    if len(text) > _LONGEST or not text.isascii() or not text.isprintable():
        raise Invalid(f"not a schedule: {text[:50]!r}", _FIELD)
    fields = ALIASES.get(text, text).split()
    if text.startswith("@") and text not in ALIASES:
        raise Invalid(f"there are the aliases {', '.join(ALIASES)}, not {text[:50]!r}", _FIELD)
    if not 5 <= len(fields) <= 7:
        raise Invalid(
            f"a schedule is one of {', '.join(ALIASES)}, or five to seven fields like '0 9 * * 1'; this has "
            f"{len(fields)}: {text[:50]!r}",
            _FIELD,
        )
    if len(fields) == 5:
        fields.insert(0, "0")
    for given, (name, lowest, highest) in zip(fields, _FIELDS, strict=False):
        _check(given, name, lowest, highest)
    years = _years(fields[6]) if len(fields) == 7 else None
    cron = Cron(text, zone, tuple(fields[:6]), years, _is_all_hours(fields[2]))
    try:
        first = cron.after(datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise Invalid(f"this time never comes: {text[:50]!r} ({error})", _FIELD) from error
    if first is None:
        raise Invalid(f"this time never comes: {text[:50]!r}", _FIELD)
    return cron


def _check(given: str, name: str, lowest: int, highest: int) -> None:
    match = _TERM.fullmatch(given)
    if match is None:
        hint = "; write numbers instead of names" if re.search(r"[A-Za-z]", given) else ""
        if re.fullmatch(r"\d+-\d+/\d+", given):
            hint = "; write the numbers of the range one by one"
        raise Invalid(f"the {name} is {_FORM}{hint}; not {given[:50]!r}", _FIELD)
    step_of_all, start, step, first, last = match.groups()
    for number in re.findall(r"\d+", given) if start is None and step_of_all is None else [start] if start else []:
        if not lowest <= int(number) <= highest:
            raise Invalid(f"the {name} is between {lowest} and {highest}, not {number}", _FIELD)
    if 0 in (int(one) for one in (step_of_all, step) if one is not None):
        raise Invalid(f"a step is at least 1: {given!r}", _FIELD)
    if first is not None and int(first) > int(last):
        raise Invalid(f"a range begins with the smaller number: {given!r}", _FIELD)


def _numbers(given: str, lowest: int, highest: int) -> frozenset[int]:
    """Return the numbers that a field means."""
    if "/" in given:
        start, step = given.split("/")
        return frozenset(range(lowest if start == "*" else int(start), highest + 1, int(step)))
    if given == "*":
        return frozenset(range(lowest, highest + 1))
    if "-" in given:
        first, last = given.split("-")
        return frozenset(range(int(first), int(last) + 1))
    return frozenset(int(one) for one in given.split(","))


def _years(given: str) -> frozenset[int] | None:
    _, lowest, highest = _FIELDS[6]
    return None if given == "*" else _numbers(given, lowest, highest)


def _is_all_hours(given: str) -> bool:
    _, lowest, highest = _FIELDS[2]
    return len(_numbers(given, lowest, highest)) == highest - lowest + 1


def _is_second_time(local: datetime, zone: ZoneInfo) -> bool:
    """Say whether a clock in the zone shows this time twice."""
    first, second = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return first is not None and second is not None and first > second


def _as_instant(local: datetime, zone: ZoneInfo) -> datetime:
    """Return when a clock in the zone shows this time, first; for a time that is left out, when the clock jumps."""
    if local.tzinfo is not None:
        return local.astimezone(UTC)
    aware = local.replace(tzinfo=zone, fold=0)
    instant = aware.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == local:
        return instant
    return _jump(instant, zone)


def _jump(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return when the clock jumps, shortly before an instant that a time left out stands for. To the second."""
    before, after = instant - timedelta(days=1), instant
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
