"""The page of one job, and what can be done to it there."""

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from starlette.responses import Response

from runstead.model.accounts import Permission
from runstead.model.costs import money
from runstead.model.errors import RunsteadError
from runstead.model.hardware import Flavor
from runstead.model.jobs import HistoryEntry, Job, Phase
from runstead.services.port_addresses import LOOPBACK_DOMAIN
from runstead.web.job_commands import job_commands
from runstead.web.visit import Visit, see

_SHOWN_MICRO = 100


@dataclass(frozen=True, slots=True)
class Times:
    """How long a job waited and ran, in seconds; None for what is not over, or never was."""

    waited: float | None
    ran: float | None


async def job_page(visit: Visit) -> Response:
    """Show a job."""
    job = await find_job(visit)
    return visit.page(
        "job.html",
        job=job,
        namespace=job.namespace,
        message=visit.context.jobs.message(job),
        times=times_of(job),
        flavor=_flavor(visit, job),
        cost=money(_shown(job.cost_at(visit.context.clock.now()))),
        history=told(await visit.context.jobs.history(visit.caller, job.namespace, job.id)),
        commands=job_commands(job, job.namespace == visit.caller.user.name),
        may_write=visit.caller.may(Permission.WRITE, job.namespace),
        address=address_of(job),
        ports=ports_of(visit, job),
        base_url=visit.base_url,
    )


def ports_of(visit: Visit, job: Job) -> list[tuple[int, str]]:
    """Return the exposed ports of a job that is not over, each with its address as a browser best uses it.

    A host of its own is best: pages have an origin of their own there. `localhost` is known to lead here.
    """
    if job.stage.is_terminal:
        return []
    host, scheme = visit.request.url.netloc, visit.request.url.scheme
    if visit.request.url.hostname == LOOPBACK_DOMAIN:
        return [(port, f"{scheme}://{job.id}--{port}.{host}/") for port in job.spec.ports.exposed]
    addresses = visit.context.port_addresses
    return [(port, f"{addresses.url(job.id, port, '')}/") for port in job.spec.ports.exposed]


async def cancel(visit: Visit) -> Response:
    """Cancel a job."""
    job = await find_job(visit)
    await visit.context.jobs.cancel(visit.caller, job.namespace, job.id)
    return see(address_of(job))


async def rerun(visit: Visit) -> Response:
    """Submit a job again, and show the new one."""
    job = await find_job(visit)
    return see(address_of(await visit.context.jobs.rerun(visit.caller, job.namespace, job.id)))


async def find_job(visit: Visit) -> Job:
    """Return the job of a request's path. Raises NotFound or Forbidden."""
    found = visit.request.path_params
    return await visit.context.jobs.get(visit.caller, found["namespace"], found["job_id"])


def told(history: list[HistoryEntry]) -> list[HistoryEntry]:
    """Return what happened, the last first, without the step that gives back what a job had: it says nothing new."""
    return [one for i, one in enumerate(history) if i == 0 or not _says_nothing(one, history[i - 1])][::-1]


def _says_nothing(entry: HistoryEntry, before: HistoryEntry) -> bool:
    return (entry.phase is Phase.DONE or entry.phase is before.phase) and (
        (entry.stage, entry.message) == (before.stage, before.message)
    )


def address_of(job: Job) -> str:
    """Return the path of a job's page."""
    return f"/jobs/{quote(job.namespace, safe='')}/{job.id}"


def times_of(job: Job) -> Times:
    """Return how long a job waited and ran. With several attempts it ran from the start of the last."""
    waited_until = job.started_at or job.finished_at
    return Times(
        _between(job.created_at, waited_until),
        _between(job.started_at, job.finished_at),
    )


def _shown(cost_micro_usd: int) -> int:
    """Return a cost without the digits that would change faster than anybody reads."""
    return -(-cost_micro_usd // _SHOWN_MICRO) * _SHOWN_MICRO


def _between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else max((end - start).total_seconds(), 0)


def _flavor(visit: Visit, job: Job) -> Flavor | None:
    """Return what the job's flavor is now; it may be gone from the configuration."""
    try:
        return visit.context.hardware.flavor(job.spec.flavor)
    except RunsteadError:
        return None
