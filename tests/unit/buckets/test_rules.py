"""Names, paths and the small pure parts."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.api.bucket_wire import operation_from
from runstead.api.conditions import http_date, is_unchanged, range_counts
from runstead.api.cursor import make_cursor, read_cursor, read_text_cursor
from runstead.model.buckets import is_bucket_name, is_content_type, path_problem
from runstead.model.errors import Invalid

KEY = b"k" * 32


@pytest.mark.parametrize("name", ["a", "A_b-c.d9", "_a_", "a" * 96, "1", "me"])
def test_names(name: str) -> None:
    assert is_bucket_name(name)


@pytest.mark.parametrize("name", ["", "-", "a-", ".a", "a..b", "a--b", "x.git", "a/b", "ä", "a" * 97, "a\n", "a b"])
def test_no_names(name: str) -> None:
    assert not is_bucket_name(name)


@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1
    )
)
def test_a_path_is_refused_for_a_stated_reason_only(components: list[str]) -> None:
    path = "/".join(components)
    expected = not any(one in (".", "..") for one in components) and len(path.encode()) <= 1024
    assert (path_problem(path) is None) is expected


@given(st.text())
def test_no_text_confuses_the_rule(path: str) -> None:
    if path_problem(path) is None:
        assert path.encode().decode() == path
        assert "\0" not in path and path == path.strip("/")


@given(st.binary(max_size=200))
def test_any_line_is_an_operation_or_invalid(line: bytes) -> None:
    try:
        operation_from(line, 1)
    except Invalid as error:
        assert "line 1" in error.message


@given(st.text(max_size=300), st.text(max_size=20))
def test_text_cursors(place: str, scope: str) -> None:
    cursor = make_cursor(KEY, scope, place)
    assert read_text_cursor(KEY, scope, cursor) == place
    for key, other in ((b"other", scope), (KEY, scope + "x")):
        with pytest.raises(Invalid):
            read_text_cursor(key, other, cursor)


def test_a_number_is_no_text() -> None:
    assert read_cursor(KEY, "s", make_cursor(KEY, "s", 7)) == 7
    with pytest.raises(Invalid):
        read_cursor(KEY, "s", make_cursor(KEY, "s", "seven"))
    with pytest.raises(Invalid):
        read_cursor(KEY, "s", "")


def test_content_types() -> None:
    assert is_content_type("text/html; charset=utf-8")
    for wrong in ("", " ", "a\n", "a\r\nb", "ü", " a", "a" * 256):
        assert not is_content_type(wrong)


@given(
    st.integers(0, 4_000_000_000_000_000).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))
)
def test_dates_in_headers(at: datetime) -> None:
    headers = {"if-modified-since": http_date(at)}
    assert is_unchanged(headers, '"x"', at)
    assert not is_unchanged(headers, '"x"', at + timedelta(seconds=1))
    assert range_counts({"if-range": http_date(at)}, '"x"', at)
    assert not range_counts({"if-range": http_date(at)}, '"x"', at + timedelta(seconds=1))


@given(st.text(max_size=50))
def test_no_condition_confuses(text: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for name in ("if-none-match", "if-modified-since", "if-range"):
        is_unchanged({name: text}, '"x"', at)
        range_counts({name: text}, '"x"', at)
