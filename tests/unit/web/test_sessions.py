"""Sessions: sealed, bound to one server, over after twelve hours; forms are bound to one session."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from runstead.web.sessions import LIFETIME_SECONDS, SessionBox

NOW = datetime(2026, 5, 12, 14, 57, 43, tzinfo=UTC)
DIGEST = hashlib.sha256(b"hf_token").digest()


@pytest.fixture
def box() -> SessionBox:
    return SessionBox(b"k" * 32)


def test_a_session_is_what_it_was(box: SessionBox) -> None:
    session, cookie = box.begin(DIGEST, NOW)
    assert box.open(cookie, NOW) == session
    assert session.token_digest == DIGEST


def test_it_ends_after_twelve_hours(box: SessionBox) -> None:
    _, cookie = box.begin(DIGEST, NOW)
    assert box.open(cookie, NOW + timedelta(seconds=LIFETIME_SECONDS - 1)) is not None
    assert box.open(cookie, NOW + timedelta(seconds=LIFETIME_SECONDS)) is None
    assert LIFETIME_SECONDS == 12 * 3600


def test_a_cookie_shows_nothing_and_fits_a_cookie(box: SessionBox) -> None:
    _, cookie = box.begin(DIGEST, NOW)
    raw = base64.urlsafe_b64decode(cookie)
    assert DIGEST not in raw
    assert DIGEST[:8] not in raw
    assert cookie != box.begin(DIGEST, NOW)[1]
    assert len(cookie) < 200


def test_any_change_makes_it_worthless(box: SessionBox) -> None:
    _, cookie = box.begin(DIGEST, NOW)
    raw = base64.urlsafe_b64decode(cookie)
    for i in range(len(raw)):
        changed = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
        assert box.open(base64.urlsafe_b64encode(changed).decode(), NOW) is None


@pytest.mark.parametrize("text", ["", "x", "=", "A" * 100, "é", "A" * 100_000, "\ud800"])
def test_nonsense_is_no_session(box: SessionBox, text: str) -> None:
    assert box.open(text, NOW) is None


def test_another_server_does_not_know_it(box: SessionBox) -> None:
    other = SessionBox(b"o" * 32)
    assert other.open(box.begin(DIGEST, NOW)[1], NOW) is None
    assert other.name != box.name
    assert SessionBox(b"k" * 32).name == box.name


def test_a_form_belongs_to_one_session(box: SessionBox) -> None:
    mine, _ = box.begin(DIGEST, NOW)
    theirs, _ = box.begin(DIGEST, NOW)
    token = box.form_token(mine)
    assert box.is_form_token(mine, token)
    assert not box.is_form_token(theirs, token)
    for wrong in ("", token[:-1], token.upper() + "x", "é", "\ud800"):
        assert not box.is_form_token(mine, wrong)
