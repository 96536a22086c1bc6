"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstead.kit.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16 GB", 16 * 10**9),
        ("16GB", 16 * 10**9),
        ("512MiB", 512 * 2**20),
        (" 1.5 GiB ", 3 * 2**29),
        ("0.5kB", 500),
        ("123", 123),
        ("7 B", 7),
        ("2 tb", 2 * 10**12),
        ("1 TiB", 2**40),
    ],
)
def test_parse(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "16 G", "16 Gi", "-1 GB", "1,5 GB", "1e9", "16 GB or so", "1.GB"])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match="16 GB"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**60))
def test_format_is_exact(count: int) -> None:
    assert parse_size(format_size(count)) == count


def test_format_is_short() -> None:
    assert [format_size(n) for n in (10**9, 2**30, 1500, 1023)] == ["1 GB", "1 GiB", "1500 B", "1023 B"]
