"""Logs of jobs as resources, at `job://OWNER/ID/log`."""

import re

from runstead.mcp.following import Tail, inspect, read_tail
from runstead.mcp.hub import Hub, HubError, job_path
from runstead.mcp.outcome import JobOutput, Link

TEMPLATE = "job://{namespace}/{job_id}/log"
DESCRIPTION = "The log of a job: its last 2,000 lines as they are now, no more than 60,000 characters."
_URI = re.compile(r"job://([^/]+)/([^/]+)/log")
_LINES = 2000
_LISTED = 20


def log_link(job: JobOutput) -> Link:
    """Return the link to a job's log."""
    return _link(job.owner.name, job.id)


async def recent(hub: Hub) -> list[Link]:
    """Return links to the logs of the newest jobs. Raises HubError."""
    who = await hub.call("GET", "/api/whoami-v2")
    jobs, _ = await hub.page(job_path(who["name"]))
    return [_link(job["owner"]["name"], job["id"]) for job in jobs[:_LISTED]]


async def read(hub: Hub, uri: str) -> str | None:
    """Return the text of a log; None if there is no such resource. Raises HubError."""
    found = _URI.fullmatch(uri)
    if found is None:
        return None
    try:
        job = await inspect(hub, found[1], found[2])
    except HubError as error:
        if error.status in (403, 404):
            return None
        raise
    tail = Tail(_LINES, [hub.token])
    await read_tail(hub, job, tail, _LINES)
    return "".join(line + "\n" for line in tail.lines())


def _link(namespace: str, job_id: str) -> Link:
    uri = TEMPLATE.format(namespace=namespace, job_id=job_id)
    return Link(uri, f"log of {job_id}", "The end of the job's log, as it is when it is read.")
