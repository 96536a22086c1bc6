"""What is written down about compartments: the names of their sockets, and which user ids were given out; and when a
supervisor has a maker.
"""

import os
import secrets
import select
import socket
from pathlib import Path

import pytest

from runstead.node import rundir
from runstead.node.compartments.attempt import Attempt
from runstead.node.compartments.divider import Divider
from runstead.node.compartments.entry import Entry, list_in, parse
from runstead.node.compartments.identities import Identities
from runstead.node.inside.refusal import Refusal


class _Nowhere(Attempt):
    """An attempt that has nothing but a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.init = -1
        self.owner = None


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    (tmp_path / "compartments").mkdir()
    return _Nowhere(tmp_path)


def note(attempt: Attempt, uid: int) -> Entry:
    entry = Entry(secrets.token_hex(8), uid, None, confined=False)
    Path(attempt.folder, entry.name).touch()
    return entry


@pytest.mark.parametrize("address", [None, "10.1.2.3", "fd00::1:2"])
@pytest.mark.parametrize("confined", [True, False])
def test_names_say_what_was_put_into_them(address: str | None, confined: bool) -> None:
    given = Entry("0123456789abcdef", 20000, address, confined=confined)
    found = parse(given.name)
    assert found is not None
    assert (found.id, found.uid, found.address, found.confined) == ("0123456789abcdef", 20000, address, confined)


@pytest.mark.parametrize(
    "name", ["next", "base", ".0123456789abcdef", "0123456789abcdef", "0123456789abcdeX-1-none-open", "a-1-none-open"]
)
def test_other_names_say_nothing(name: str) -> None:
    assert parse(name) is None


def test_what_is_there_is_listed_by_age(attempt: Attempt) -> None:
    entries = [note(attempt, uid) for uid in (20007, 20005, 20006)]
    for age, entry in enumerate(entries):
        os.utime(Path(attempt.folder, entry.name), ns=(0, age))
    for other in ("next", ".0123456789abcdef"):
        Path(attempt.folder, other).touch()
    assert list(list_in(attempt.folder)) == [entry.id for entry in entries]
    assert list_in(attempt.folder + "/nowhere") == {}


def test_user_ids_are_given_out_once_whoever_does_it(attempt: Attempt) -> None:
    first, second = Identities(attempt), Identities(attempt)
    given = [identities.take(1) for _ in range(70) for identities in (first, second)] + [Identities(attempt).take(1)]
    assert len(set(given)) == len(given)
    assert min(given) == 20000
    at = first.take(200)  # more in a row than are kept at hand
    assert not set(range(at, at + 200)) & set(given)


def test_user_ids_begin_again_and_spare_those_in_use(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstead.node.compartments.identities._LAST_ID", 20100)
    used = set(range(20000, 20100, 3))
    for uid in used:
        note(attempt, uid)
    rundir.write_json(os.path.join(attempt.folder, "next"), {"uid": 20099})
    for _ in range(100):  # more than there are; none of these is noted
        at = Identities(attempt).take(2)
        assert used.isdisjoint({at, at + 1})
    assert Identities(attempt).take(1) not in used


def test_when_no_user_id_is_left_that_is_said(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstead.node.compartments.identities._LAST_ID", 20100)
    for uid in range(20000, 20100, 2):
        note(attempt, uid)
    rundir.write_json(os.path.join(attempt.folder, "next"), {"uid": 20100})
    assert Identities(attempt).take(1) == 20001
    with pytest.raises(Refusal, match="all user ids"):
        Identities(attempt).take(2)


def test_the_end_of_a_maker_is_not_taken_for_that_of_its_attempt(attempt: Attempt) -> None:
    poll = select.poll()
    divider = Divider(attempt)
    divider.register(poll)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(os.path.join(attempt.path, "divide"))
        lines: list[int] = []
        listener = -1
        for _ in range(2):  # a maker goes at once, for want of an attempt to enter, and leaves the call to the next
            [(listener, _)] = poll.poll()
            assert divider.handle(listener)
            [(line, _)] = poll.poll()
            lines.append(line)
            if len(lines) == 1:
                assert divider.handle(line)
        divider.finish()
        assert divider.handle(lines[-1])
        assert divider.handle(listener)
        assert [fd for fd, _ in poll.poll(0)] == lines[-1:]
        assert not divider.handle(caller.fileno())
