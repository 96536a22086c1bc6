"""When schedules are due: the Hub's grammar, calendars, and clocks that are changed."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.model.errors import Invalid
from runstead.services.cron import ALIASES, parse

ZONE = {name: ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")}
BERLIN = ZONE["Europe/Berlin"]


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZONE[zone]).astimezone(UTC)


def due(expression: str, start: datetime, days: float, zone: str = "UTC") -> list[datetime]:
    return list(parse(expression, ZONE[zone]).between(start, start + timedelta(days=days)))


def shown(times: list[datetime], zone: str) -> list[str]:
    return [f"{one.astimezone(ZONE[zone]):%m-%d %H:%M%z}" for one in times]


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str) -> None:
    assert due(alias, at("2026-01-01"), 800) == due(ALIASES[alias], at("2026-01-01"), 800)
    first = due(alias, at("2025-12-31T12:00"), 400)[0]
    assert first == {"@weekly": at("2026-01-04"), "@hourly": at("2025-12-31T13:00")}.get(alias, at("2026-01-01"))


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("0 9 * * 1", "2026-03-09T09:00:00"),
        ("*/5 * * * *", "2026-03-04T05:10:00"),
        ("7/20 * * * *", "2026-03-04T05:07:00"),
        ("30 2,14 1-5 * *", "2026-03-04T14:30:00"),
        ("0 0 * * 7", "2026-03-08T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("30 * * * * *", "2026-03-04T05:06:30"),
        ("*/10 * * * * *", "2026-03-04T05:06:10"),
        ("0 0 0 1 1 * 2030,2040", "2030-01-01T00:00:00"),
        ("0 0 0 29 2 * 2027/2", None),
        ("  0   9\t* * 1 ", "2026-03-09T09:00:00"),
    ],
)
def test_the_next_due_instant(expression: str, first: str | None) -> None:
    now = at("2026-03-04T05:06:07")
    if first is None:
        with pytest.raises(Invalid, match="never comes"):
            parse(expression, ZONE["UTC"])
    else:
        assert parse(expression, ZONE["UTC"]).after(now) == at(first)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "five to seven fields"),
        ("@reboot", "the aliases @annually"),
        ("@Daily", "the aliases"),
        ("* * * *", "this has 4"),
        ("* * * * * * * *", "this has 8"),
        ("60 * * * *", "minute is between 0 and 59, not 60"),
        ("* 24 * * *", "hour is between 0 and 23"),
        ("* * 0 * *", "day of the month is between 1 and 31"),
        ("* * * 13 *", "month is between"),
        ("* * * * 8", "day of the week is between"),
        ("60 * * * * *", "second is between"),
        ("* * * * * * 1969", "year is between"),
        ("0 9 * * MON", "numbers instead of names"),
        ("0 9 * JAN *", "numbers instead of names"),
        ("1-5/2 * * * *", "numbers of the range one by one"),
        ("1,2-3 * * * *", "the minute is a number"),
        ("5-1 * * * *", "begins with the smaller"),
        ("*/0 * * * *", "a step is at least 1"),
        ("1/0 * * * *", "a step is at least 1"),
        ("-1 * * * *", "the minute is a number"),
        ("1,,2 * * * *", "the minute is a number"),
        ("L * * * *", "the minute is"),
        ("0 0 L * *", "the day of the month is"),
        ("0 0 * * 1#2", "the day of the week is"),
        ("٣ * * * *", "not a schedule"),
        ("0 0 31 2 *", "never comes"),
        ("0 0 0 1 1 * 1999", "never comes"),
        ("* " * 400, "not a schedule"),
    ],
)
def test_what_the_hub_refuses_is_refused_with_what_to_write(expression: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason) as error:
        parse(expression, BERLIN)
    assert error.value.field == "schedule"


def test_a_year_that_is_over_is_not_due_again() -> None:
    assert parse("0 0 0 1 1 * 2020", BERLIN).after(at("2026-01-01")) is None


def test_both_days_restricted_means_either_one_with_a_star_means_both() -> None:
    assert [one.day for one in due("0 0 13 * 5", at("2026-02-28"), 31)] == [6, 13, 20, 27]
    assert [one.day for one in due("0 0 */2 * 5", at("2026-02-28"), 31)] == [13, 27]


class TestChangedClocks:
    """Berlin: on 2026-03-29 the hour from 2 to 3 is left out, on 2026-10-25 it comes twice."""

    @pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *", "30 2 */1 * *", "0 30 2 * * * 2026"])
    def test_a_nightly_run_neither_falls_out_nor_comes_twice(self, expression: str) -> None:
        spring = due(expression, at("2026-03-27T12:00"), 4, "Europe/Berlin")
        assert shown(spring, "Europe/Berlin") == [
            "03-28 02:30+0100",
            "03-29 03:00+0200",
            "03-30 02:30+0200",
            "03-31 02:30+0200",
        ]
        autumn = due(expression, at("2026-10-23T12:00"), 4, "Europe/Berlin")
        assert shown(autumn, "Europe/Berlin") == [
            "10-24 02:30+0200",
            "10-25 02:30+0200",
            "10-26 02:30+0100",
            "10-27 02:30+0100",
        ]

    def test_several_times_that_are_left_out_are_one_run(self) -> None:
        spring = due("*/20 2 * * *", at("2026-03-28T23:30"), 0.2, "Europe/Berlin")
        assert shown(spring, "Europe/Berlin") == ["03-29 03:00+0200"]
        with_the_next_hour = due("*/30 1-3 * * *", at("2026-03-28T23:30"), 0.2, "Europe/Berlin")
        assert shown(with_the_next_hour, "Europe/Berlin") == [
            "03-29 01:00+0100",
            "03-29 01:30+0100",
            "03-29 03:00+0200",
            "03-29 03:30+0200",
        ]

    @pytest.mark.parametrize("expression", ["*/15 * * * *", "*/15 */1 * * *", "0 */15 0-23 * * *"])
    def test_what_runs_every_hour_follows_elapsed_time(self, expression: str) -> None:
        for start in ("2026-03-28T20:07", "2026-10-24T20:07"):
            times = due(expression, at(start), 1, "Europe/Berlin")
            assert len(times) == 96
            assert {after - before for before, after in pairwise(times)} == {timedelta(minutes=15)}

    def test_the_second_time_of_an_hour_leads_to_the_next_day(self) -> None:
        second = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1).astimezone(UTC)
        assert shown(due("30 2 * * *", second, 2.1, "Europe/Berlin"), "Europe/Berlin") == [
            "10-26 02:30+0100",
            "10-27 02:30+0100",
        ]

    def test_half_an_hour(self) -> None:
        """Lord Howe Island: on 2026-10-04 the clock jumps from 2:00 to 2:30, on 2026-04-05 from 2:00 back to 1:30."""
        zone = "Australia/Lord_Howe"
        assert shown(due("15 2 * * *", at("2026-10-03T00:00", zone), 2.5, zone), zone) == [
            "10-03 02:15+1030",
            "10-04 02:30+1100",
            "10-05 02:15+1100",
        ]
        assert shown(due("45 1 * * *", at("2026-04-04T00:00", zone), 2.5, zone), zone) == [
            "04-04 01:45+1100",
            "04-05 01:45+1100",
            "04-06 01:45+1030",
        ]

    @pytest.mark.parametrize("zone", ZONE)
    @pytest.mark.parametrize("expression", ["0 3 * * *", "30 2 * * *", "0 0 * * *", "15 1,2,3 * * *"])
    def test_ten_years_have_one_run_per_day_and_time(self, zone: str, expression: str) -> None:
        start = at("2026-01-01T00:00", zone) - timedelta(seconds=1)
        times = list(parse(expression, ZONE[zone]).between(start, at("2036-01-01T00:00", zone) - timedelta(seconds=1)))
        days = (datetime(2036, 1, 1, tzinfo=UTC) - datetime(2026, 1, 1, tzinfo=UTC)).days
        per_day = 3 if "," in expression else 1
        assert len(times) == len(set(times)) == days * per_day
        assert times == sorted(times)
        dates = [one.astimezone(ZONE[zone]).date() for one in times]
        assert len(set(dates)) == days


fields = st.tuples(
    st.sampled_from(["0", "*/20", "7", "0,30", "10-12", "5/25"]),
    st.sampled_from(["*", "2", "1-3", "*/6", "0,23", "0-23"]),
    st.sampled_from(["*", "1", "25", "29,30,31", "*/9"]),
    st.sampled_from(["*", "3", "10", "*/5", "2-4"]),
    st.sampled_from(["*", "0", "1-5", "7", "*/2"]),
)
instants = st.integers(0, 400 * 86_400).map(lambda seconds: at("2025-12-01") + timedelta(seconds=seconds))


@settings(max_examples=150, deadline=None)
@given(fields, instants, st.sampled_from(list(ZONE)))
def test_each_instant_is_the_first_after_the_one_before(chosen: tuple[str, ...], start: datetime, zone: str) -> None:
    """From any instant in between, the answer is the same: nothing is skipped and nothing comes twice."""
    cron = parse(" ".join(chosen), ZONE[zone])
    first = cron.after(start)
    assert first is not None
    assert first > start
    second = cron.after(first)
    assert second is not None
    assert second > first
    for share in (0.0, 0.3, 0.9, 0.999):
        between = first + (second - first) * share
        assert cron.after(between) == second, between
    assert cron.latest(first, second, 5) == [first, second]
    assert cron.latest(first, second - timedelta(microseconds=1), 5) == [first]


@settings(max_examples=60, deadline=None)
@given(fields, instants, st.sampled_from(list(ZONE)))
def test_the_answer_is_that_of_looking_at_every_minute(chosen: tuple[str, ...], start: datetime, zone: str) -> None:
    """Where no clock is changed near by."""
    cron = parse(" ".join(chosen), ZONE[zone])
    end = start + timedelta(days=4)
    offsets = {(start + timedelta(hours=h)).astimezone(ZONE[zone]).utcoffset() for h in range(-24, 24 * 5)}
    if len(offsets) > 1:
        return
    minute = start.replace(second=0, microsecond=0)
    expected: list[datetime] = []
    while (minute := minute + timedelta(minutes=1)) <= end:
        if matches(chosen, minute.astimezone(ZONE[zone])):
            expected.append(minute)
    assert list(cron.between(start, end)) == [one for one in expected if one > start]


def matches(chosen: tuple[str, ...], local: datetime) -> bool:
    minute, hour, day, month, weekday = chosen
    on_day = is_in(day, local.day, 1, 31)
    on_weekday = is_in(weekday, local.isoweekday() % 7, 0, 7) or is_in(weekday, local.isoweekday(), 0, 7)
    both = day.startswith("*") or weekday.startswith("*")
    right_day = (on_day and on_weekday) if both else (on_day or on_weekday)
    at_time = is_in(minute, local.minute, 0, 59) and is_in(hour, local.hour, 0, 23)
    return right_day and at_time and is_in(month, local.month, 1, 12)


def is_in(text: str, value: int, lowest: int, highest: int) -> bool:
    if text == "*":
        return True
    if "/" in text:
        start, step = text.split("/")
        return value in range(lowest if start == "*" else int(start), highest + 1, int(step))
    if "-" in text:
        first, last = text.split("-")
        return int(first) <= value <= int(last)
    return value in (int(one) for one in text.split(","))


def test_the_last_instants_of_a_long_time_are_found_quickly() -> None:
    cron = parse("* * * * * *", ZONE["UTC"])
    until = at("2026-06-01")
    last = cron.latest(at("2016-06-01"), until, 1000)
    assert last[-1] == until
    assert last[0] == until - timedelta(seconds=999)
