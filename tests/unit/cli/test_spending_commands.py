"""`runstead usage` and `runstead budget` where no server ever ran."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from runstead.cli.main import app
from runstead.model.errors import Invalid, NotFound


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return ["--data-dir", str(tmp_path / "data")]


def run(place: list[str], *words: str) -> Result:
    return CliRunner().invoke(app, [*words, *place], catch_exceptions=False)


def test_no_use(place: list[str]) -> None:
    assert run(place, "usage").stderr == "No job ran in that time.\n"
    assert json.loads(run(place, "usage", "--json").stdout) == []
    assert run(place, "usage", "--csv", "--by", "user", "--label", "team").stdout == (
        "user,label,attempts,running,seconds,cost\n"
    )


@pytest.mark.parametrize("month", ["November", "2026-13", "2026-00", "26-01", "2026-1"])
def test_a_month_that_is_none(place: list[str], month: str) -> None:
    with pytest.raises(Invalid, match="a month is written like"):
        run(place, "usage", "--month", month)


@pytest.mark.parametrize("amount", ["nan", "much", "0.0000001", "inf", "1e30", ""])
def test_an_amount_that_is_none(place: list[str], amount: str) -> None:
    run(place, "user", "add", "alice")
    with pytest.raises(Invalid, match="an amount is a number"):
        run(place, "budget", "set", "alice", amount)


def test_budgets_are_for_who_is_there(place: list[str]) -> None:
    with pytest.raises(NotFound, match="there is no user or organization 'nobody'"):
        run(place, "budget", "set", "nobody", "1")
    run(place, "org", "add", "lab")
    with pytest.raises(NotFound, match="has no budget"):
        run(place, "budget", "remove", "lab")
    assert run(place, "budget", "list").stdout == ""
    assert run(place, "budget", "set", "lab", "$1,250.50").stdout == (
        "lab may spend $1,250.50 a month; $1,250.50 is left of this one\n"
    )
    [row] = json.loads(run(place, "budget", "list", "--json").stdout)
    assert row == {"namespace": "lab", "budget": 1250.5, "spent": 0, "reserved": 0, "left": 1250.5}
    assert "$1,250.50" in run(place, "budget", "list").stdout
    run(place, "budget", "remove", "lab")
    assert json.loads(run(place, "budget", "list", "--json").stdout) == []
