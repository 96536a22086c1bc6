"""Containers made before there is a job for them, each at the other end of a connection to its supervisor.

They belong to this process: the end of a connection, however it comes about, is the end of the container
(`runstead.node.ahead`). Two jobs with the same key need the same root directory, disk and ids.
"""

import contextlib
import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runstead.executors.launching import Launcher, exchange
from runstead.model.errors import Unavailable
from runstead.node import framing
from runstead.node.request import Request


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that waits for its job."""

    name: str  # under which it holds its network and its image
    key: str
    connection: socket.socket

    async def ask(self, request: Request) -> dict[str, Any] | None:
        """Have the job started in it and return the answer; None when it died. It is used up either way."""
        try:
            return await exchange(self.connection, framing.encode(request.to_message()))
        except OSError:
            return None
        finally:
            self.connection.close()

    def is_there(self) -> bool:
        """Say whether its supervisor lives."""
        return framing.is_silent(self.connection)


class Prepared:
    """Those of one executor."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._waiting: dict[str, Waiting] = {}

    def __len__(self) -> int:
        """How many there are, dead ones among them."""
        return len(self._waiting)

    def counts(self) -> Mapping[str, int]:
        """Return how many there are of each key."""
        found: dict[str, int] = {}
        for one in self._waiting.values():
            found[one.key] = found.get(one.key, 0) + 1
        return found

    async def make(self, name: str, request: Request) -> None:
        """Have one made under a name that no other has. Raises Unavailable."""
        connection = await self._launcher.connect()
        try:
            answer = await exchange(connection, framing.encode({**request.to_message(), "op": "prepare"}))
            if answer is None or not answer["ok"]:
                raise Unavailable(f"no container could be prepared: {answer['error'] if answer else 'it died'}")
        except OSError as error:
            connection.close()
            raise Unavailable(f"no container could be prepared: {error}") from error
        except BaseException:
            connection.close()
            raise
        self._waiting[name] = Waiting(name, key_of(request), connection)

    def take(self, key: str) -> Waiting | None:
        """Return one for a job, whose it is from then on; None when there is none."""
        for one in list(self._waiting.values()):
            if one.key == key and one.is_there():
                return self._waiting.pop(one.name)
        return None

    def drop(self, keep: Mapping[str, int]) -> list[str]:
        """Let go of those that died and all beyond so many of each key; return the names of these."""
        left = dict(keep)
        gone: list[str] = []
        for one in list(self._waiting.values()):
            if one.is_there() and left.get(one.key, 0) > 0:
                left[one.key] -= 1
                continue
            del self._waiting[one.name]
            with contextlib.suppress(OSError):
                one.connection.shutdown(socket.SHUT_RDWR)
            one.connection.close()
            gone.append(one.name)
        return gone


def key_of(request: Request) -> str:
    """Return what two requests have in common that can use the same container."""
    message = request.to_message()
    said = [message[name] for name in ("namespace", "isolation", "cgroups", "container", "devices", "mounts")]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def fits(request: Request) -> bool:
    """Say whether a job may get a container that was made before it: nothing of its own has to be in its root."""
    container = request.container
    return container is not None and not container.runtime and not request.argv and not request.mounts
