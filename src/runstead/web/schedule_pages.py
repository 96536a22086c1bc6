"""The pages of schedules: those of a namespace, and one with what happened to it."""

from collections.abc import Iterator
from shlex import join
from urllib.parse import quote

from starlette.responses import Response

from runstead.model.accounts import Permission
from runstead.model.costs import money
from runstead.model.schedules import Schedule
from runstead.web.visit import Visit, see

_MOST_SHOWN = 500


async def start(visit: Visit) -> Response:
    """Lead to the caller's own schedules, or to those of the first namespace they may look at."""
    namespaces = visit.namespaces
    if not namespaces:
        return visit.page("no_namespace.html")
    return see(f"/schedules/{quote(namespaces[0], safe='')}")


async def schedule_list(visit: Visit) -> Response:
    """Show the schedules of a namespace, newest first."""
    namespace: str = visit.request.path_params["namespace"]
    schedules = visit.context.schedules
    every = await schedules.all(visit.caller, namespace)
    found = every[:_MOST_SHOWN]
    costs = await schedules.costs_micro_usd(found)
    shown = {one.id: money(costs[one.id]) for one in found} if any(costs.values()) else {}
    return visit.page(
        "schedule_list.html", namespace=namespace, schedules=found, costs=shown, more=len(every) - len(found)
    )


async def schedule_page(visit: Visit) -> Response:
    """Show a schedule."""
    schedules = visit.context.schedules
    schedule = await _find(visit)
    cost = await schedules.cost_micro_usd(schedule)
    return visit.page(
        "schedule.html",
        schedule=schedule,
        namespace=schedule.namespace,
        cost=money(cost) if cost else None,
        history=await schedules.history(visit.caller, schedule.namespace, schedule.id),
        commands=[(title, join(words)) for title, words in _commands(visit, schedule)],
        may_write=visit.caller.may(Permission.WRITE, schedule.namespace),
        address=address_of(schedule),
        base_url=visit.base_url,
    )


async def run(visit: Visit) -> Response:
    """Begin a run now, and show it."""
    schedule = await _find(visit)
    job = await visit.context.schedules.trigger(visit.caller, schedule.namespace, schedule.id)
    return see(f"/jobs/{quote(job.namespace, safe='')}/{job.id}")


async def suspend(visit: Visit) -> Response:
    """Let no more runs begin."""
    schedule = await _find(visit)
    await visit.context.schedules.suspend(visit.caller, schedule.namespace, schedule.id)
    return see(address_of(schedule))


async def resume(visit: Visit) -> Response:
    """Let runs begin again."""
    schedule = await _find(visit)
    await visit.context.schedules.resume(visit.caller, schedule.namespace, schedule.id)
    return see(address_of(schedule))


async def delete(visit: Visit) -> Response:
    """Delete a schedule."""
    schedule = await _find(visit)
    await visit.context.schedules.delete(visit.caller, schedule.namespace, schedule.id)
    return see(f"/schedules/{quote(schedule.namespace, safe='')}")


def address_of(schedule: Schedule) -> str:
    """Return the path of a schedule's page."""
    return f"/schedules/{quote(schedule.namespace, safe='')}/{schedule.id}"


async def _find(visit: Visit) -> Schedule:
    found = visit.request.path_params
    return await visit.context.schedules.get(visit.caller, found["namespace"], found["schedule_id"])


def _commands(visit: Visit, schedule: Schedule) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield commands of the `hf` client with what each of them does."""
    where = () if schedule.namespace == visit.caller.user.name else ("--namespace", schedule.namespace)
    start = ("hf", "jobs", "scheduled")
    yield "Everything about it", (*start, "inspect", *where, schedule.id)
    yield "Run it now", (*start, "trigger", *where, schedule.id)
    if schedule.suspended:
        yield "Let it run again", (*start, "resume", *where, schedule.id)
    else:
        yield "Let it rest", (*start, "suspend", *where, schedule.id)
    yield "Change when it runs", (*start, "reschedule", *where, schedule.id, schedule.expression)
