"""A start whose supervisor dies at once: it is asked for again, and in the end may be tried later."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from runner import Runner
from runstead.executors.launching import Launcher
from runstead.executors.native import NativeSettings
from runstead.executors.process import ProcessExecutor
from runstead.model.errors import Unavailable


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncGenerator[Runner]:
    executor = ProcessExecutor(tmp_path / "data", NativeSettings(isolation="none"), lambda _kind, _job: None)
    await executor.open()
    yield Runner(tmp_path, executor)
    await executor.close()


def lose(monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, Any] | None]) -> None:
    """Answer the first starts so; the others take their way."""
    real = Launcher.ask

    async def ask(self: Launcher, message: Mapping[str, object], connection: socket) -> dict[str, Any] | None:
        if not answers:
            return await real(self, message, connection)
        connection.close()
        return answers.pop(0)

    monkeypatch.setattr(Launcher, "ask", ask)


async def test_it_is_asked_for_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {"ok": False, "again": True, "error": "prepared for other settings"}
    lose(monkeypatch, [None, stale, stale, stale, None])
    code, lines = await runner.shell("echo here")
    assert (code, lines) == (0, ["here"])


async def test_one_that_dies_again_and_again_may_be_tried_later(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, [None, None, None])
    launch = runner.launch("echo", "here")
    with pytest.raises(Unavailable, match="died before it made the attempt"):
        await runner.start(launch)
    record, lines = await runner.run(launch)
    assert (record.exit_code, lines) == (0, ["here"])
