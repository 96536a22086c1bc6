"""The seam for what serves ports of jobs in place of the jobs: sandboxes."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from runstead.model.jobs import Job
from runstead.services.exposure import Onward, Visit

VISIT = "runstead.visit"
"""The key in `scope["extensions"]` that holds the `Visit`: job, port, and who it is."""


class Native(Protocol):
    """Serves some ports of some jobs.

    `app` is a plain ASGI application; it is called for requests that were let in, with `path` and `raw_path` as the
    client appended them to the URL of the port, `root_path` empty, and `scope["extensions"][VISIT]`. Bodies stream
    both ways; it may raise nothing, its answers go out as they are. The `Authorization` field is still there.
    """

    @property
    def app(self) -> Callable[[Any, Any, Any], Awaitable[None]]:
        """The application."""
        ...

    def serves(self, job: Job, port: int) -> bool:
        """Say whether this port of this job is served here. Must be quick: it is asked at every request."""
        ...

    async def onward(self, visit: Visit, target: str, fields: list[tuple[bytes, bytes]]) -> Onward | None:
        """Say where in the job a request goes on; None if `app` shall answer it.

        `fields` is the head of the request, names as they were sent. May raise any expected error to refuse it.
        """
        ...
