"""The operations on jobs that are there."""

import asyncio
from collections.abc import Mapping
from typing import Any

from runstead.mcp import advice, rendering, wire
from runstead.mcp.arguments import (
    Cancel,
    Inspect,
    Labels,
    Logs,
    NoArguments,
    Ps,
    Stats,
    WaitFor,
)
from runstead.mcp.call import Call, Done
from runstead.mcp.following import Followed, Tail, follow, inspect, read_tail
from runstead.mcp.hub import HubError, job_path
from runstead.mcp.outcome import (
    GpuOutput,
    HardwareOutcome,
    Inspection,
    InspectionsOutcome,
    JobOutcome,
    JobsOutcome,
    LogsOutcome,
    StatsOutcome,
)
from runstead.mcp.resources import log_link
from runstead.mcp.submitting import job_done
from runstead.mcp.wire import Json

_STATS_SECONDS = 10.0
_NOT_RUNNING = 406
_PAGE = 100
_ACTIVE = ("SCHEDULING", "RUNNING")


async def ps(call: Call, args: Ps) -> Done:
    """List jobs."""
    namespace = await call.namespace(args.namespace)
    stages = [args.status.upper()] if args.status else [] if args.all else list(_ACTIVE)
    query = [("stage", stage) for stage in stages] + [("label", f"{k}={v}") for k, v in args.labels.items()]
    if call.hub.limits_pages:
        query.append(("limit", str(min(args.limit, _PAGE))))
    found, following = await call.hub.page(job_path(namespace), query)
    while following and len(found) < args.limit:
        more, following = await call.hub.page(following)
        found += more
    jobs = [wire.job_output(job, call.hub.endpoint) for job in found[: args.limit]]
    more = following is not None or len(found) > args.limit
    steps: list[str] = []
    if not jobs and not args.all and not args.status:
        steps.append(
            'None is waiting or running. {"operation": "ps", "args": {"all": true}} shows those that are over.'
        )
    if more:
        steps.append("There are more: narrow it down by `labels` or `status`, or raise `limit`.")
    text = rendering.jobs_table(jobs) if jobs else f"No jobs in {namespace}."
    return Done(JobsOutcome(jobs=jobs, total_jobs=len(jobs), more=more), text, steps, total=len(jobs))


async def logs(call: Call, args: Logs) -> Done:
    """Show the end of a log."""
    namespace, job_id = await call.place(args.job_id, args.namespace)
    job = await inspect(call.hub, namespace, job_id)
    if args.wait_seconds and not wire.is_over(job):
        unread = Tail(1, [call.hub.token])
        job = (await follow(call.hub, job, args.wait_seconds, unread, call.report, from_start=False)).job
    tail = Tail(args.tail, [call.hub.token])
    await read_tail(call.hub, job, tail, args.tail)
    lines, shown = tail.lines(), wire.job_output(job, call.hub.endpoint)
    outcome = LogsOutcome(
        job_id=job_id,
        stage=shown.status.stage,
        lines=lines,
        finished=wire.is_over(job),
        truncated=tail.seen > len(lines) or tail.seen >= args.tail,
    )
    text = f"{rendering.job_line(shown)}\n{rendering.log_block(lines, f'The last {len(lines)} lines of its log')}"
    return Done(outcome, text, advice.after_job(shown, lines), [log_link(shown)], len(lines))


async def inspect_jobs(call: Call, args: Inspect) -> Done:
    """Show all that is known of jobs."""
    found = await asyncio.gather(*(_inspection(call, job_id, args.namespace) for job_id in args.job_id))
    texts = [rendering.job_text(one.job) if one.job is not None else f"{one.job_id}: {one.message}" for one in found]
    jobs = [one.job for one in found if one.job is not None]
    steps = [step for job in jobs[:1] if len(jobs) == 1 for step in advice.after_job(job, ())]
    if len(jobs) < len(found):
        steps += advice.after_refusal(HubError(404, ""), call.operation)
    return Done(
        InspectionsOutcome(requested_job_ids=args.job_id, inspections=list(found)),
        "\n\n".join(texts),
        steps,
        [log_link(job) for job in jobs[:5]],
        len(found),
        is_error=not jobs,
    )


async def _inspection(call: Call, job_id: str, namespace: str | None) -> Inspection:
    try:
        job = await inspect(call.hub, *await call.place(job_id, namespace))
    except HubError as error:
        if error.status in (0, 401):
            raise
        return Inspection(job_id=job_id, status="error", message=error.message)
    return Inspection(job_id=job_id, status="success", job=wire.job_output(job, call.hub.endpoint))


async def cancel(call: Call, args: Cancel) -> Done:
    """End jobs. One that is over stays as it is."""
    found: list[Inspection] = []
    for job_id in args.job_id:
        namespace, own_id = await call.place(job_id, args.namespace)
        await call.hub.call("POST", job_path(namespace, own_id, "cancel"))
        job = wire.job_output(await inspect(call.hub, namespace, own_id), call.hub.endpoint)
        found.append(Inspection(job_id=job_id, status="success", job=job))
    text = "\n".join(rendering.job_line(one.job) for one in found if one.job is not None)
    if len(found) == 1 and found[0].job is not None:
        return Done(JobOutcome(job=found[0].job), text)
    outcome = InspectionsOutcome(requested_job_ids=args.job_id, inspections=found)
    return Done(outcome, text, total=len(found))


async def wait(call: Call, args: WaitFor) -> Done:
    """Wait for the end of a job."""
    namespace, job_id = await call.place(args.job_id, args.namespace)
    job = await inspect(call.hub, namespace, job_id)
    unread = Tail(1, [call.hub.token])
    job = (await follow(call.hub, job, args.wait_seconds, unread, call.report, from_start=False)).job
    tail = Tail(args.tail, [call.hub.token])
    await read_tail(call.hub, job, tail, args.tail)
    return job_done(call, Followed(job, tail))


async def stats(call: Call, args: Stats) -> Done:
    """Show what a running job uses."""
    namespace, job_id = await call.place(args.job_id, args.namespace)
    try:
        async with asyncio.timeout(_STATS_SECONDS), call.hub.events(job_path(namespace, job_id, "metrics")) as events:
            batch = await anext(aiter(events), None)
    except TimeoutError:
        batch = None
    except HubError as error:
        if error.status != _NOT_RUNNING:
            raise
        batch = None
    if not batch:
        job = wire.job_output(await inspect(call.hub, namespace, job_id), call.hub.endpoint)
        text = f"{rendering.job_line(job)}\nOnly a job that is RUNNING uses anything."
        return Done(JobOutcome(job=job), text, advice.after_job(job, ()))
    outcome = _stats(job_id, batch[0])
    return Done(outcome, rendering.stats_text(outcome))


def _stats(job_id: str, sample: Mapping[str, Any]) -> StatsOutcome:
    gpus = [
        GpuOutput(
            id=name,
            utilization_percent=gpu.get("utilization"),
            memory_used_bytes=gpu.get("memory_used_bytes"),
            memory_total_bytes=gpu.get("memory_total_bytes"),
        )
        for name, gpu in wire.part(sample, "gpus").items()
    ]
    return StatsOutcome(
        job_id=job_id,
        cpu_percent=sample["cpu_usage_pct"],
        cpu_cores=sample["cpu_millicores"] / 1000,
        memory_used_bytes=sample["memory_used_bytes"],
        memory_total_bytes=sample["memory_total_bytes"],
        received_bits_per_second=sample["rx_bps"],
        sent_bits_per_second=sample["tx_bps"],
        gpus=gpus,
    )


async def hardware(call: Call, args: NoArguments) -> Done:  # noqa: ARG001
    """List the flavors."""
    found = [wire.flavor_output(one) for one in await call.hub.call("GET", "/api/jobs/hardware")]
    return Done(HardwareOutcome(flavors=found), rendering.hardware_table(found), total=len(found))


async def labels(call: Call, args: Labels) -> Done:
    """Change the labels of a job."""
    namespace, job_id = await call.place(args.job_id, args.namespace)
    present: Json = {} if args.replace else wire.part(await inspect(call.hub, namespace, job_id), "labels")
    body = {"labels": args.changed(present)}
    shown = wire.job_output(
        await call.hub.call("PUT", job_path(namespace, job_id, "labels"), body=body), call.hub.endpoint
    )
    return Done(JobOutcome(job=shown), f"Job {shown.id} has now: {rendering.labels_text(shown.labels)}")
