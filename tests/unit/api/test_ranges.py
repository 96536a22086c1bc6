"""The Range header."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.api.ranges import parse_ranges, resolve_range
from runstead.model.errors import Invalid


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=5-", (5, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=90-1000", (90, 100)),
        ("Bytes = 1-1", (1, 2)),
        ("bytes=100-", None),
        ("bytes=100-200", None),
        ("bytes=-0", None),
    ],
)
def test_one_range(header: str, meant: tuple[int, int] | None) -> None:
    (wanted,) = parse_ranges(header)
    assert resolve_range(wanted, 100) == meant


def test_several() -> None:
    assert parse_ranges("bytes=0-1, 5-,-3") == [(0, 1), (5, None), (None, 3)]


@pytest.mark.parametrize(
    "header", ["", "bytes", "bytes=", "bytes=-", "bytes=2-1", "bytes=a-b", "items=0-1", "bytes=1-2-3", "bytes=١-٢"]
)
def test_no_ranges(header: str) -> None:
    with pytest.raises(Invalid):
        parse_ranges(header)


@given(
    st.text(max_size=60) | st.builds(lambda t: "bytes=" + t, st.text("0123456789-, ", max_size=60)), st.integers(0, 99)
)
@settings(deadline=None)
def test_anything(header: str, size: int) -> None:
    try:
        found = parse_ranges(header)
    except Invalid:
        return
    for wanted in found:
        meant = resolve_range(wanted, size)
        assert meant is None or 0 <= meant[0] < meant[1] <= size
