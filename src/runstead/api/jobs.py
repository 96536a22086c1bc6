"""The routes under `/api/jobs` (wire-jobs §4)."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from runstead.api import wire
from runstead.api.auth import CallerOf
from runstead.api.context import base_url, context
from runstead.api.cursor import make_cursor, read_cursor, read_text_cursor
from runstead.api.errors import error_response
from runstead.api.sse import EventStream
from runstead.model.accounts import Permission
from runstead.model.errors import Invalid
from runstead.model.jobs import Job, JobFilter, Phase, Stage
from runstead.services.accounts import authorize
from runstead.services.jobs import PAGE
from runstead.services.outputs import START
from runstead.services.specs import is_label

Namespace = Annotated[str, Path(max_length=200)]
JobId = Annotated[str, Path(max_length=200)]
Stages = Annotated[list[str], Query(alias="stage", max_length=20)]
Labels = Annotated[list[str], Query(alias="label", max_length=20)]

_NOT_ACCEPTABLE = 406


async def hardware(request: Request) -> list[dict[str, Any]]:
    """List the flavors."""
    return [wire.flavor_json(flavor) for flavor in context(request).hardware.flavors()]


async def create(
    request: Request,
    namespace: Namespace,
    caller: CallerOf,
    body: wire.JobCreate,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Submit a job."""
    jobs = context(request).jobs
    spec = body.spec(jobs.limits.default_timeout_seconds)
    job = await jobs.submit(caller, namespace, spec, wire.texts(body.secrets), idempotency_key or None)
    answer = _job(request, job)
    if idempotency_key:
        answer.headers["Idempotency-Key"] = idempotency_key  # so that clients know that it counts here
    return answer


async def page(
    request: Request,
    namespace: Namespace,
    caller: CallerOf,
    stage: Stages = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
) -> Response:
    """List jobs, newest first. No client of the Hub sends a `limit`."""
    found = context(request)
    wanted = _filter(stage, label)
    before = read_cursor(found.cursor_key, namespace, cursor) if cursor is not None else None
    jobs, following = await found.jobs.page(caller, namespace, wanted, before, limit)
    headers: dict[str, str] = {}
    if following is not None:
        query = [("stage", one) for one in stage] + [("label", one) for one in label]
        query += [("limit", str(limit))] if limit != PAGE else []
        query.append(("cursor", make_cursor(found.cursor_key, namespace, following)))
        headers["Link"] = f'<{base_url(request)}/api/jobs/{quote(namespace)}?{urlencode(query)}>; rel="next"'
    return JSONResponse(jobs_json(request, jobs), headers=headers)


async def count(
    request: Request,
    namespace: Namespace,
    caller: CallerOf,
    stage: Stages = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
) -> dict[str, int]:
    """Count jobs."""
    return {"count": await context(request).jobs.count(caller, namespace, _filter(stage, label))}


async def inspect(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf) -> Response:
    """Return a job."""
    return _job(request, await context(request).jobs.get(caller, namespace, job_id))


async def cancel(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf) -> Response:
    """Cancel a job; one that is over is returned unchanged."""
    return _job(request, await context(request).jobs.cancel(caller, namespace, job_id))


async def duplicate(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf) -> Response:
    """Submit the same job again."""
    return _job(request, await context(request).jobs.rerun(caller, namespace, job_id))


async def set_labels(
    request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf, body: wire.LabelsUpdate
) -> Response:
    """Replace all labels of a job."""
    return _job(request, await context(request).jobs.set_labels(caller, namespace, job_id, body.labels))


async def expose(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf, body: wire.Ports) -> Response:
    """Replace the exposed ports of a job: those that are not named are closed."""
    return _job(request, await context(request).exposure.set_ports(caller, namespace, job_id, body.value()))


async def logs(
    request: Request,
    namespace: Namespace,
    job_id: JobId,
    caller: CallerOf,
    tail: Annotated[int | None, Query(ge=0, le=2**53)] = None,
) -> Response:
    """Stream the log from the start, or its last `tail` lines, until the job is over."""
    job = await context(request).jobs.get(caller, namespace, job_id)
    return EventStream(context(request).logs.stream(job, tail))


async def metrics(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf) -> Response:
    """Stream what a running job uses; 406 for one that does not run."""
    job = await context(request).jobs.get(caller, namespace, job_id)
    if job.phase is not Phase.RUNNING:
        return error_response(_NOT_ACCEPTABLE, "NotRunning", f"the job is not running: its stage is {job.stage}")

    async def blocks() -> AsyncGenerator[bytes | None]:
        async for sample in context(request).metrics.stream(job):
            text = json.dumps(wire.metrics_json(sample, f"{job.id}-{job.attempt}"))
            yield f"event: metric\ndata: {text}\n\n".encode()

    return EventStream(blocks())


async def history(request: Request, namespace: Namespace, job_id: JobId, caller: CallerOf) -> list[dict[str, Any]]:
    """Return what happened to a job, oldest first. Not a route of the Hub."""
    return [wire.history_json(one) for one in await context(request).jobs.history(caller, namespace, job_id)]


async def outputs(
    request: Request,
    namespace: Namespace,
    job_id: JobId,
    caller: CallerOf,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
) -> Response:
    """List what a job wrote to its volumes, by bucket and path. Not a route of the Hub."""
    found = context(request)
    job = await found.jobs.get(caller, namespace, job_id)
    scope = f"outputs/{job.id}"
    after = START
    if cursor is not None:
        bucket, _, path = read_text_cursor(found.cursor_key, scope, cursor).partition("/")
        after = (int(bucket), path)
    page, following = await found.outputs.page(job.id, after)
    headers: dict[str, str] = {}
    if following is not None:
        text = make_cursor(found.cursor_key, scope, f"{following[0]}/{following[1]}")
        url = f"{base_url(request)}/api/jobs/{quote(namespace)}/{job_id}/outputs?{urlencode({'cursor': text})}"
        headers["Link"] = f'<{url}>; rel="next"'
    return JSONResponse([wire.output_json(one) for one in page], headers=headers)


async def auth_check(namespace: Namespace, permission: Permission, caller: CallerOf) -> dict[str, Any]:
    """Say whether the caller has a permission in a namespace."""
    owner = authorize(caller, permission, namespace)
    return {
        "namespace": {"id": owner.id, "name": owner.name},
        "user": {"id": caller.user.id, "name": caller.user.name},
    }


async def job_auth_check(
    request: Request, namespace: Namespace, job_id: JobId, permission: Permission, caller: CallerOf
) -> dict[str, Any]:
    """Say whether the caller has a permission on a job."""
    await context(request).jobs.get(caller, namespace, job_id)
    return await auth_check(namespace, permission, caller)


def jobs_json(request: Request, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return jobs as the client that asks may see them."""
    found, now = context(request), context(request).clock.now()
    return [wire.job_json(job, found.jobs.message(job), now, _expose_urls(request, job)) for job in jobs]


def _job(request: Request, job: Job) -> Response:
    return JSONResponse(jobs_json(request, [job])[0])


def _expose_urls(request: Request, job: Job) -> list[str]:
    addresses = context(request).port_addresses
    return [addresses.url(job.id, port, base_url(request)) for port in job.spec.ports.exposed]


def _filter(stages: list[str], labels: list[str]) -> JobFilter:
    known = {stage.value for stage in Stage}
    for stage in stages:
        if stage.upper() not in known:
            raise Invalid(f"not one of {', '.join(sorted(known))}: {stage[:50]!r}", "stage")
    return JobFilter(frozenset(Stage(stage.upper()) for stage in stages), labels_asked_for(labels) or None)


def labels_asked_for(labels: list[str]) -> dict[str, str]:
    """Return the labels of a filter, each given as `key=value`. Raises Invalid."""
    pairs: dict[str, str] = {}
    for label in labels:
        key, separator, value = label.partition("=")
        if not separator or not key or not is_label(key) or not is_label(value):
            raise Invalid(f"a filter has the form key=value as labels have them, not {label[:100]!r}", "label")
        if pairs.setdefault(key, value) != value:
            raise Invalid(f"no job has two values of one label: {key[:100]!r}", "label")
    return pairs
