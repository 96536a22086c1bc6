"""The command line as a whole."""

import subprocess
import sys
import time
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from runstead import __version__
from runstead.cli.durations import parse_duration
from runstead.cli.main import COMMANDS, app
from runstead.kit.settings import setting_keys


def test_version_is_quick() -> None:
    command = [sys.executable, "-m", "runstead.cli", "--version"]
    spent: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        assert subprocess.run(command, capture_output=True, text=True).stdout == f"runstead {__version__}\n"
        spent.append(time.perf_counter() - began)
    assert min(spent) < 1.0  # a tenth of that on an idle machine; this is to notice an import gone astray


def test_version_needs_no_heavy_imports() -> None:
    heavy = ("pydantic", "fastapi", "sqlalchemy", "rich")
    text = f"import runstead.cli.main, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_command_explains_itself(command: str | None) -> None:
    done = CliRunner().invoke(app, [*([command] if command else []), "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_serve_has_a_flag_for_every_setting() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).stdout
    for key in setting_keys():
        flag = "--" + key.removeprefix("server.").replace(".", "-").replace("_", "-")
        assert flag in shown
    assert "--executor " in shown


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["frobnicate"]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "span"),
    [("30d", timedelta(days=30)), ("12 h", timedelta(hours=12)), ("90m", timedelta(minutes=90)), ("2w", timedelta(14))],
)
def test_durations(text: str, span: timedelta) -> None:
    assert parse_duration(text) == span


@pytest.mark.parametrize("text", ["", "d", "30", "0d", "-1d", "1y", "1.5h", "99999999d"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        parse_duration(text)
