"""The seam for what serves ports of jobs in place of the jobs: sandboxes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from socket import socket
from typing import Protocol

from starlette.types import ASGIApp

from runstead.model.jobs import Job
from runstead.services.exposure import Visit

VISIT = "runstead.visit"
"""The key in `scope["extensions"]` that holds the `Visit`: job, port, and who it is."""


@dataclass(frozen=True, slots=True)
class Onward:
    """Where in the job a request goes on, as raw bytes: WebSockets, uploads and streams included."""

    key: tuple[str, ...]  # connections with equal keys are alike and may be kept for each other
    connect: Callable[[], Awaitable[socket]]  # raises as `Exposure.connect` does
    target: str  # path and query for the program there
    without: frozenset[bytes] = frozenset()  # fields of the request that stay behind, in lower case


class Native(Protocol):
    """Serves some ports of some jobs.

    `app` is a plain ASGI application; it is called for requests that were let in, with `path` and `raw_path` as the
    client appended them to the URL of the port, `root_path` empty, and `scope["extensions"][VISIT]`. Bodies stream
    both ways; it may raise nothing, its answers go out as they are. The `Authorization` field is still there.
    """

    app: ASGIApp

    def serves(self, job: Job, port: int) -> bool:
        """Say whether this port of this job is served here. Must be quick: it is asked at every request."""
        ...

    async def onward(self, visit: Visit, target: str, fields: list[tuple[bytes, bytes]]) -> Onward | None:
        """Say where in the job a request goes on; None if `app` shall answer it.

        `fields` is the head of the request, names as they were sent. May raise any expected error to refuse it.
        """
        ...
