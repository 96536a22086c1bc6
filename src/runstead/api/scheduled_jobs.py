"""The routes under `/api/scheduled-jobs` (wire-jobs §17)."""

import asyncio
import json
from typing import Annotated, Any

from fastapi import Path, Query, Request
from fastapi.responses import JSONResponse, Response

from runstead.api import wire
from runstead.api.auth import CallerOf
from runstead.api.context import context
from runstead.api.jobs import Namespace, labels_asked_for
from runstead.api.schedule_wire import ScheduleCreate, ScheduleUpdate, event_json, schedule_json
from runstead.model.schedules import Schedule

_WRITTEN_AT_ONCE = 100

ScheduleId = Annotated[str, Path(max_length=200)]
Labels = Annotated[list[str], Query(alias="label", max_length=20)]


async def create(request: Request, namespace: Namespace, caller: CallerOf, body: ScheduleCreate) -> Response:
    """Make a schedule."""
    found = context(request)
    body.refuse_what_needs_a_person()
    spec = body.jobSpec.spec(found.jobs.limits.default_timeout_seconds)
    secrets = wire.texts(body.jobSpec.secrets)
    schedule = await found.schedules.create(
        caller,
        namespace,
        spec,
        secrets,
        body.schedule,
        concurrency=bool(body.concurrency),
        suspend=bool(body.suspend),
    )
    return await _schedule(request, schedule)


async def all_of(request: Request, namespace: Namespace, caller: CallerOf, label: Labels = []) -> Response:  # noqa: B006
    """List schedules, newest first, suspended ones too; there are no pages."""
    schedules = context(request).schedules
    found = await schedules.all(caller, namespace, labels_asked_for(label))
    costs = await schedules.costs_micro_usd(found)
    written: list[str] = []
    for first in range(0, len(found), _WRITTEN_AT_ONCE):
        written += [json.dumps(schedule_json(one, costs[one.id])) for one in found[first : first + _WRITTEN_AT_ONCE]]
        await asyncio.sleep(0)  # other requests go on meanwhile
    return Response("[" + ",".join(written) + "]", media_type="application/json")


async def inspect(request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf) -> Response:
    """Return a schedule."""
    return await _schedule(request, await context(request).schedules.get(caller, namespace, schedule_id))


async def delete(request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf) -> dict[str, Any]:
    """Delete a schedule; its runs stay."""
    await context(request).schedules.delete(caller, namespace, schedule_id)
    return {}


async def suspend(request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf) -> Response:
    """Let no more runs begin."""
    return await _schedule(request, await context(request).schedules.suspend(caller, namespace, schedule_id))


async def resume(request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf) -> Response:
    """Let runs begin again."""
    return await _schedule(request, await context(request).schedules.resume(caller, namespace, schedule_id))


async def reschedule(
    request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf, body: ScheduleUpdate
) -> Response:
    """Change when a schedule runs."""
    schedules = context(request).schedules
    return await _schedule(request, await schedules.reschedule(caller, namespace, schedule_id, body.schedule))


async def run(request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf) -> Response:
    """Begin a run now; 409 without concurrency while one is active."""
    found = context(request)
    job = await found.schedules.trigger(caller, namespace, schedule_id)
    return JSONResponse(wire.job_json(job, found.jobs.message(job), found.clock.now()))


async def set_labels(
    request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf, body: wire.LabelsUpdate
) -> Response:
    """Replace all labels of a schedule."""
    schedules = context(request).schedules
    return await _schedule(request, await schedules.set_labels(caller, namespace, schedule_id, body.labels))


async def history(
    request: Request, namespace: Namespace, schedule_id: ScheduleId, caller: CallerOf
) -> list[dict[str, Any]]:
    """Return what happened to a schedule of late, newest first. Not a route of the Hub."""
    events = await context(request).schedules.history(caller, namespace, schedule_id)
    return [event_json(event) for event in events]


async def _schedule(request: Request, schedule: Schedule) -> Response:
    cost = await context(request).schedules.cost_micro_usd(schedule)
    return JSONResponse(schedule_json(schedule, cost))
