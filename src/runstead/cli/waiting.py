"""Waiting for a port of a job, over HTTP as any client would."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any

from runstead.cli.client_checks import stored_token
from runstead.model.errors import Conflict, Forbidden, NotFound, Unauthenticated, Unavailable
from runstead.model.ids import is_id
from runstead.services.port_addresses import PortAddresses

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
_REQUEST_SECONDS = 10.0
# Something listens that does not speak HTTP, or takes its time.
_LISTENS_ALL_THE_SAME = frozenset(("bad-answer", "connection-lost", "no-answer", "not-accepting"))


class Waiting:
    """A client of one server."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str] = os.environ) -> None:
        """`data_dir` tells of this machine's own server, for when the environment names none."""
        own = data_dir / "server.url"
        self._endpoint = environment.get("HF_ENDPOINT", "").rstrip("/") or (own.read_text() if own.exists() else "")
        self._token = environment.get("HF_TOKEN") or stored_token(environment)
        if not self._endpoint:
            raise NotFound("no server is known: set HF_ENDPOINT to its URL")
        if not self._token:
            raise Unauthenticated("this needs a token: set HF_TOKEN or run `hf auth login`")
        self._opener = urllib.request.build_opener(_NoRedirects())

    def for_port(self, job_id: str, port: int, timeout_seconds: float) -> str:
        """Return the URL of the port once something listens there.

        Raises Conflict when the job ends before, Unavailable when the time is over, NotFound, Forbidden.
        """
        job_id = job_id.rpartition("/")[2]  # as the Hub's client prints it, with its namespace
        if not is_id(job_id):
            raise NotFound(f"there is no job {job_id[:100]!r}")
        url = PortAddresses().url(job_id, port, self._endpoint)
        deadline, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
        while True:
            left = deadline - time.monotonic()
            status, fields, said = self._ask(url, max(min(_REQUEST_SECONDS, left), 0.1))
            cause = fields.get("X-Runstead-Cause")  # in this spelling, for it is ours
            if status and (cause is None or cause in _LISTENS_ALL_THE_SAME):
                return url
            if status and cause not in ("not-listening", "not-started", "not-running", "unreachable", "server-busy"):
                kind = {401: Unauthenticated, 403: Forbidden, 404: NotFound}.get(status, Conflict)
                raise kind(said)
            if left <= pause:
                raise Unavailable(f"nothing listens on port {port} after {timeout_seconds:g} s: {said}")
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _ask(self, url: str, timeout_seconds: float) -> tuple[int, Mapping[str, str], str]:
        """Return status, fields and message of an answer; status 0 if there is none."""
        request = urllib.request.Request(  # noqa: S310
            url, headers={"Authorization": f"Bearer {self._token}"}, method="HEAD"
        )
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                return answer.status, dict(answer.headers), ""
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.headers.get("X-Error-Message") or str(error)
        except (OSError, ValueError) as error:
            return 0, {}, str(error)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Message, newurl: str) -> None:
        """An answer that sends elsewhere is an answer."""
