"""Requests of the sandbox protocol, read and refused; answers as clients parse them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from runstead.model.errors import Invalid
from runstead.model.executions import Background, Command, Ended, FileEntry
from runstead.model.sandboxes import NewPooledSandbox
from runstead.sandbox import wire

AT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "command"),
    [
        ({"cmd": "echo $A"}, Command(("/bin/sh", "-c", "echo $A"))),
        ({"cmd": ["echo", ""], "shell": False}, Command(("echo", ""))),
        ({"cmd": "x", "shell": True, "cwd": "/a", "timeout": 0.5}, Command(("/bin/sh", "-c", "x"), {}, "/a", None)),
        ({"cmd": ["x"], "stdin": ""}, Command(("x",), input=True)),
        ({"cmd": ["x"], "cwd": "", "env": {"A": 1, "B": True, "C": None, "D": 1.5, "E": "ü"}}, Command(("x",))),
    ],
)
def test_commands(body: dict[str, Any], command: Command) -> None:
    found = wire.command_of(body, {"HOME": "/h", "A": "0"})
    assert (found.argv, found.folder, found.input) == (command.argv, command.folder, command.input)
    assert found.timeout_seconds == body.get("timeout")
    given = {"A": "1", "B": "true", "C": "", "D": "1.5", "E": "ü"} if "env" in body else {"A": "0"}
    assert found.environment == {"HOME": "/h", **given}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"cmd": ""},
        {"cmd": []},
        {"cmd": ["a", 1]},
        {"cmd": {"a": 1}},
        {"cmd": "a", "shell": False},
        {"cmd": ["a"], "shell": True},
        {"cmd": "a", "shell": "yes"},
        {"cmd": "a\0b"},
        {"cmd": ["\ud800"]},
        {"cmd": "a" * 200_000},
        {"cmd": "a", "env": ["A=1"]},
        {"cmd": "a", "env": {"A=B": "1"}},
        {"cmd": "a", "env": {"A": float("inf")}},
        {"cmd": "a", "env": {"A": {}}},
        {"cmd": "a", "timeout": -1},
        {"cmd": "a", "timeout": True},
        {"cmd": "a", "timeout": float("nan")},
        {"cmd": "a", "cwd": 3},
        {"cmd": "a", "stdin": 3},
    ],
)
def test_what_is_no_command_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        wire.command_of(body, {})


def test_events_are_lines_of_ascii_whatever_is_in_them() -> None:
    text = "\u2028\u2029\x85\x0b\x0c\x1c\n\0ü😀"
    line = wire.event_line("stdout", data=text)
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == {"event": "stdout", "data": text}


def test_how_a_command_ended() -> None:
    assert json.loads(wire.exit_line(Ended(None, 9, timed_out=True), 1.5)) == {
        "event": "exit",
        "exit_code": None,
        "signal": 9,
        "timed_out": True,
        "duration_ms": 1500,
    }


def test_a_process_of_the_background() -> None:
    shell = Background(3, 17, ("/bin/sh", "-c", "sleep 1"), None, AT, Ended(0, None))
    assert wire.process_json(shell) == {
        "id": "p-3",
        "pid": 17,
        "cmd": "sleep 1",
        "tag": None,
        "started_at_ms": 1772323200000,
        "running": False,
        "exit_code": 0,
    }
    words = Background(4, 18, ("sleep", "1"), "t", AT, None)
    assert wire.process_json(words) | {"cmd": ["sleep", "1"], "tag": "t", "running": True, "exit_code": None} == (
        wire.process_json(words)
    )


def test_a_file_has_six_keys_and_no_other() -> None:
    entry = FileEntry("a", "/x/a", "other", 5, AT, 0o644)
    assert wire.entry_json(entry) == {
        "name": "a",
        "path": "/x/a",
        "type": "file",
        "size": 5,
        "mtime_ms": 1772323200000,
        "mode": "644",
    }


def test_what_is_asked_of_a_host() -> None:
    assert wire.new_sandboxes({"count": 1, "idle_timeout_secs": 600, "env": {"A": 1}}) == (
        NewPooledSandbox(600, {"A": "1"}),
        1,
    )
    wanted, count = wire.new_sandboxes({"count": 3, "idle_timeout_secs": 0, "max_procs": 5, "max_mem_mb": 7})
    assert (wanted, count) == (NewPooledSandbox(None, {}, 5, 7 * 2**20), 3)


@pytest.mark.parametrize(
    "body",
    [
        {"count": 0},
        {"count": 1.5},
        {"count": True},
        {"count": 1001},
        {"idle_timeout_secs": "600"},
        {"max_procs": 5000},
        {"max_mem_mb": 0},
        {"env": {"A": "x" * 70_000}},
        {"env": "A"},
    ],
)
def test_what_no_host_is_asked_for_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        wire.new_sandboxes(body)
