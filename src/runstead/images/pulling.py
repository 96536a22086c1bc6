"""Runs the program that pulls, once for all who wait for the same image."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import runstead
from runstead.images.references import Reference
from runstead.images.rules import Rules, rules_to
from runstead.model.errors import ImageFailure

Tell = Callable[[str], None]

_LONGEST_LINE = 1 << 22


class _Pull:
    """One program, and who listens to it."""

    def __init__(self) -> None:
        self.listeners: dict[int, Tell] = {}
        self.last: str | None = None
        self.task: asyncio.Task[None] | None = None

    def tell(self, line: str) -> None:
        self.last = line
        for listener in list(self.listeners.values()):
            listener(line)


class Pulls:
    """The pulls of this process."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self._folder = folder
        self._rules = rules
        self._running: dict[str, _Pull] = {}
        self._counter = 0

    async def pull(self, wanted: Reference, tell: Tell) -> None:
        """Return when the image is here. It ends when nobody waits for it any more. Raises ImageFailure."""
        name = str(wanted)
        pull = self._running.get(name)
        if pull is None:
            pull = self._running[name] = _Pull()
            order = {"op": "pull", "reference": name}
            pull.task = asyncio.create_task(self._run(order, pull.tell), name=f"pull {name}")
            pull.task.add_done_callback(lambda _: self._running.pop(name, None))
        assert pull.task is not None
        self._counter += 1
        key = self._counter
        pull.listeners[key] = tell
        if pull.last is not None:
            tell(pull.last)
        try:
            await asyncio.shield(pull.task)
        finally:
            del pull.listeners[key]
            if not pull.listeners and not pull.task.done():
                self._running.pop(name, None)
                pull.task.cancel()
                await asyncio.wait([pull.task])

    async def close(self) -> None:
        """End all of them."""
        tasks = [pull.task for pull in self._running.values() if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, order: Mapping[str, Any], tell: Tell) -> None:
        await run_program(self._folder, self._rules, order, tell)


async def run_program(folder: Path, rules: Rules, order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Run the program with an order and return its last word. Raises ImageFailure. Cancelling ends the program."""
    source = str(Path(runstead.__file__).parent.parent)
    code = f"import sys; sys.path.insert(0, {source!r}); from runstead.images.program import main; main()"
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", code),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        raise ImageFailure(f"the program that pulls images cannot be started: {error}", again=True) from error
    try:
        assert process.stdin is not None
        values = {"folder": str(folder), "rules": rules_to(rules), **order}
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(values).encode() + b"\n")
            await process.stdin.drain()
        return await _listen(process, tell)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        await process.wait()


async def _listen(process: Process, tell: Tell) -> Mapping[str, Any]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        word = json.loads(line)
        if "tell" in word:
            tell(word["tell"])
        elif "error" in word:
            raise ImageFailure(word["error"], again=word["again"])
        else:
            return word
    code = await process.wait()
    raise ImageFailure(f"the program that pulls images died (exit code {code}); try again", again=True)
