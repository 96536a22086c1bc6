"""What proves itself: tokens, grants and links, and everything that looks like them."""

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.model.accounts import Permission
from runstead.model.errors import Forbidden, NotFound, Unauthenticated
from runstead.services.content.links import EXPIRES, RANGES, SIGNATURE, Grant, Links, allows
from runstead.services.content.tokens import CasCaller, CasTokens

# Read when the module is imported, which is long before its tests run in a run of the whole suite.
LATER = int(time.time()) + 24 * 3600
TOKENS, LINKS = CasTokens(b"k" * 32), Links(b"k" * 32)


@pytest.mark.parametrize("permission", list(Permission))
@pytest.mark.parametrize("scope", ["bucket:1", "dataset:ü", "x" * 300])
def test_a_token_says_who(permission: Permission, scope: str) -> None:
    caller = CasCaller(scope, permission)
    token = TOKENS.mint(caller, LATER)
    assert token.isascii() and TOKENS.recognize(token) == caller
    with pytest.raises(Unauthenticated):
        CasTokens(b"l" * 32).recognize(token)


def test_a_token_expires_to_the_second() -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        TOKENS.recognize(TOKENS.mint(CasCaller("s", Permission.READ), int(time.time())))


def test_reading_is_not_writing() -> None:
    with pytest.raises(Forbidden):
        CasCaller("s", Permission.READ).require_write()
    CasCaller("s", Permission.WRITE).require_write()


@given(st.text(max_size=200) | st.builds(lambda t: "xet1." + t, st.text("AZaz09-_=", max_size=200)))
@settings(deadline=None)
def test_anything_else_is_no_token(text: str) -> None:
    with pytest.raises(Unauthenticated):
        TOKENS.recognize(text)


@given(st.integers(0, 80), st.sampled_from("Aa0-_"))
@settings(deadline=None)
def test_a_changed_token_is_none(at: int, letter: str) -> None:
    token = TOKENS.mint(CasCaller("bucket:something", Permission.READ), LATER)
    changed = token[: at % len(token)] + letter + token[at % len(token) + 1 :]
    if changed != token:
        with pytest.raises(Unauthenticated):
            TOKENS.recognize(changed)


@pytest.mark.parametrize("scope", ["s", "ss", "sss"])
def test_a_token_has_one_spelling(scope: str) -> None:
    token = TOKENS.mint(CasCaller(scope, Permission.READ), LATER)
    letters = string.ascii_letters + string.digits + "-_"
    assert {token[:-1] + letter for letter in letters if _is_token(token[:-1] + letter)} == {token}


def _is_token(text: str) -> bool:
    try:
        TOKENS.recognize(text)
    except Unauthenticated:
        return False
    return True


def test_a_grant_comes_back() -> None:
    grant = Grant(b"x" * 32, 1 << 26, (1 << 64) - 1, LATER)
    assert LINKS.grant(LINKS.grant_id(grant)) == grant
    with pytest.raises(NotFound):
        Links(b"l" * 32).grant(LINKS.grant_id(grant))
    with pytest.raises(Forbidden):
        LINKS.grant(LINKS.grant_id(Grant(b"x" * 32, 1, 1, 1)))


@given(st.text(max_size=300))
@settings(deadline=None)
def test_anything_else_is_no_grant(text: str) -> None:
    with pytest.raises(NotFound):
        LINKS.grant(text)


def query(text: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl(text))


def test_a_link_names_its_ranges() -> None:
    asked = query(LINKS.read_query("data/x/y", [(0, 9), (20, 29)], LATER))
    assert LINKS.readable("data/x/y", asked) == [(0, 9), (20, 29)]
    for wrong in (
        {**asked, RANGES: "bytes=0-99"},
        {**asked, EXPIRES: str(LATER + 1)},
        {**asked, SIGNATURE: "00" * 16},
        {**asked, SIGNATURE: "zz"},
        {k: v for k, v in asked.items() if k != EXPIRES},
        {},
    ):
        with pytest.raises(Forbidden):
            LINKS.readable("data/x/y", wrong)
    with pytest.raises(Forbidden):
        LINKS.readable("data/x/z", asked)
    with pytest.raises(Forbidden, match="expired"):
        LINKS.readable("n", query(LINKS.read_query("n", [(0, 9)], int(time.time()) - 1)))


def test_parts_of_a_range_are_allowed() -> None:
    ranges = [(10, 19), (30, 39)]
    assert allows(ranges, (10, 19)) and allows(ranges, (12, 12)) and allows(ranges, (30, 35))
    assert not allows(ranges, (9, 12)) and not allows(ranges, (15, 32)) and not allows(ranges, (39, 40))
