"""Events as the client reads them, and cursors nobody can bend."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.api.cursor import make_cursor, read_cursor
from runstead.api.sse import encode_log_lines
from runstead.model.errors import Invalid
from runstead.node.logformat import encode, stamp

AT = datetime(2026, 5, 12, 14, 57, 43, 120000, tzinfo=UTC)


@given(st.lists(st.text().filter(lambda text: "\n" not in text), min_size=1))
def test_every_line_is_one_event_that_python_splits_in_one(texts: list[str]) -> None:
    block = "".join(text + "\n" for text in texts).encode("utf-8", "surrogatepass")
    events = encode_log_lines(encode(block, stamp(AT) + b" ")).decode("ascii")
    lines = [line for line in events.splitlines() if line]
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        assert line.startswith("data: {")
        event = json.loads(line.removeprefix("data: "))
        assert event["timestamp"] == "2026-05-12T14:57:43.120000Z"
        assert event["data"] == text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").removesuffix("\r")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert b'"data":"\\ufffda"' in encode_log_lines(stamp(AT) + b" \xffa\n")


@given(st.integers(0, 2**64 - 1))
def test_a_cursor_leads_back_to_its_place(place: int) -> None:
    assert read_cursor(b"key", "alice", make_cursor(b"key", "alice", place)) == place


@given(st.text(max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        read_cursor(b"key", "alice", text)


def test_a_cursor_fits_its_own_list_and_server_only() -> None:
    cursor = make_cursor(b"key", "alice", 7)
    for key, scope, text in ((b"key", "bob", cursor), (b"other", "alice", cursor), (b"key", "alice", cursor[:-2])):
        with pytest.raises(Invalid):
            read_cursor(key, scope, text)
