"""Programs in the background of a container: what is known of them is in a folder inside, and outlives this server."""

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from runstead.executors.shell import scripts
from runstead.executors.shell.door import Door
from runstead.executors.shell.lanes import Lanes
from runstead.model.errors import Invalid, Unavailable
from runstead.model.executions import Background, Command, Ended
from runstead.node.engine import STATE

_KEPT = 256  # that have ended
_ARGV_BYTES = 16384  # of a description; what is longer is cut
_KILLED = 9


class Backgrounds:
    """The programs in the background of one attempt."""

    def __init__(self, door: Door, lanes: Lanes) -> None:
        self._door = door
        self._lanes = lanes
        self._next: int | None = None
        self._turn = asyncio.Lock()

    async def spawn(
        self, command: Command, folder: str, variables: Mapping[str, str], tag: str | None
    ) -> tuple[str, Background | None]:
        """Start one. Returns the word that was said if it was refused."""
        mark = f"b{secrets.token_hex(8)}_"
        started_at = time.time()
        argv = _cut(command.argv)
        described = json.dumps({"argv": argv, "tag": tag, "at": started_at, "user": command.user})
        limit = "" if command.timeout_seconds is None else f"{command.timeout_seconds:.3f}"
        while True:
            number = await self._number()
            arguments = [STATE, str(number), mark, described.encode().hex(), folder, limit, *command.argv]
            _, stream, word = await self._door.begin(
                scripts.SPAWN, arguments, mark, variables=variables, user=command.user
            )
            await stream.close()
            if word == "taken":  # by another server
                self._next = None
                continue
            if word == "state":
                raise Unavailable(f"what is known of programs in the background cannot be kept in the job: {STATE}")
            if not word.isdigit():
                async with self._turn:
                    if self._next == number + 1:
                        self._next = number  # numbers are counted without holes
                return word, None
            at = datetime.fromtimestamp(started_at, UTC)
            return "", Background(number, int(word), tuple(argv), tag, at, None)

    async def _number(self) -> int:
        async with self._turn:
            if self._next is None:
                self._next = max((one.id for one, _ in await self._find()), default=-1) + 1
            self._next += 1
            return self._next - 1

    async def all(self) -> list[Background]:
        """List them, and forget the oldest of those that ended when they are too many."""
        found = [one for one, _ in await self._find()]
        ended = [one.id for one in found if one.ended is not None]
        if old := set(ended[: max(len(ended) - _KEPT, 0)]):
            await self._lanes.ask("rm", "-rf", *(f"{STATE}/b{number}" for number in old))
        return [one for one in found if one.id not in old]

    async def user_of(self, number: int) -> tuple[bool, str | None]:
        """Return whether one runs, and as whom."""
        for one, user in await self._find():
            if one.id == number:
                return one.ended is None, user
        return False, None

    async def _find(self) -> list[tuple[Background, str | None]]:
        answer = await self._lanes.ask("rs_list", STATE)
        rows = [_read(line) for line in answer.output.decode("ascii", "replace").splitlines()]
        return sorted((row for row in rows if row is not None), key=lambda row: row[0].id)


def _cut(argv: tuple[str, ...]) -> list[str]:
    kept: list[str] = []
    left = _ARGV_BYTES
    for word in argv:
        kept.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    return kept


def _read(line: str) -> tuple[Background, str | None] | None:
    """Return what a line says; None for one that makes no sense: the job may write there, too."""
    try:
        number, how, code, alive, child, what = line.split(" ")
        described: Any = json.loads(bytes.fromhex(what))
        return Background(
            id=int(number),
            pid=int(child),
            argv=tuple(str(word) for word in described["argv"]),
            tag=None if described["tag"] is None else str(described["tag"]),
            started_at=datetime.fromtimestamp(float(described["at"]), UTC),
            ended=_ended(how, code, there=alive == "there"),
        ), described["user"]
    except (ValueError, TypeError, LookupError, OverflowError, OSError):
        return None


def _ended(how: str, code: str, *, there: bool) -> Ended | None:
    if how in ("killed", "timed"):
        return Ended(None, _KILLED, timed_out=how == "timed")
    if code == "-":
        return None if there else Ended(None, _KILLED)  # all at once: somebody inside killed everything
    return Ended(int(code), None)


def refusal(word: str, command: Command, folder: str) -> Invalid:
    """Return what a word that a script says instead of a process id stands for."""
    if word == "folder":
        return Invalid(f"the folder to begin in cannot be entered: {folder}")
    name = command.argv[0]
    return Invalid(f"there is no such program that can be executed: {name}")
