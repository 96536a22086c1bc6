"""Two pipes between `runstead exec` and the server it starts: one tells that the server is ready, and with what
token; the other tells the server that `exec` is gone, however it ended, because the system closes it then.
"""

import json
import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runstead.app.serving import Started


@dataclass(frozen=True, slots=True)
class Ready:
    """What a started server says of itself."""

    url: str
    owner: str
    token: str | None
    notes: tuple[str, ...] = ()


def report_ready(descriptor: int, started: "Started") -> None:
    """Write to the pipe that the server answers, and close it."""
    said = {"url": started.url, "owner": started.owner, "token": started.token, "notes": list(started.notes)}
    with os.fdopen(descriptor, "w") as pipe:
        json.dump(said, pipe)


def read_ready(descriptor: int) -> Ready | None:
    """Wait for the server's word on the pipe; None when it ended without one."""
    with os.fdopen(descriptor) as pipe:
        text = pipe.read()
    if not text:
        return None
    said = json.loads(text)
    return Ready(said["url"], said["owner"], said["token"], tuple(said["notes"]))


class Lifeline:
    """The server's end of the pipe that closes when `exec` is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_inheritable(descriptor, False)

    def hold(self) -> None:
        """From now on, stop this process as by SIGTERM when the other end closes."""
        threading.Thread(target=self._wait, name="lifeline", daemon=True).start()

    def _wait(self) -> None:
        while os.read(self._descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
