"""The operations on jobs."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from runstead.mcp import advice, rendering, wire
from runstead.mcp.arguments import (
    Attached,
    Cancel,
    Inspect,
    Keyed,
    Labels,
    Logs,
    NoArguments,
    Ps,
    Rerun,
    Run,
    Stats,
    Uv,
    VolumeMount,
    WaitFor,
    WithScript,
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
    ScriptOutput,
    StatsOutcome,
)
from runstead.mcp.resources import log_link
from runstead.mcp.scripts import Script, bring, uv_command
from runstead.mcp.wire import Json

_STATS_SECONDS = 10.0
_NOT_RUNNING = 406
_PAGE = 100
_ACTIVE = ("SCHEDULING", "RUNNING")
_KEY_UNKNOWN = (
    "This endpoint knows no idempotency_key: the same call again starts a second job. "
    "Look with `ps` before you repeat it."
)


async def run(call: Call, args: Run) -> Done:
    """Submit a command."""
    namespace = await call.namespace(args.namespace)
    body = wire.job_spec(args, args.image, shell_words(args.command), call.hub.token)
    return await _submit(call, namespace, body, args, args)


async def uv(call: Call, args: Uv) -> Done:
    """Submit a script."""
    namespace = await call.namespace(args.namespace)

    async def submit(script: Script) -> Done:
        body = script_body(call, args, script)
        return await _submit(call, namespace, body, args, args, script.output)

    return await with_script(call, namespace, args.script, args.volumes, submit)


def shell_words(command: list[str] | str) -> list[str]:
    """Return the words of a command; a text is for a shell."""
    return ["sh", "-c", command] if isinstance(command, str) else command


def script_body(call: Call, args: WithScript, script: Script) -> dict[str, Any]:
    """Return the body that creates a job with a script."""
    words = uv_command(script, args.dependencies, args.python, args.script_args)
    return wire.job_spec(
        args, args.image, words, call.hub.token, environment=script.environment, volumes=script.volumes
    )


async def with_script(
    call: Call, namespace: str, code: str, volumes: list[VolumeMount], submit: Callable[[Script], Awaitable[Done]]
) -> Done:
    """Bring a script to its job; where the job cannot have the bucket, as a variable after all. Raises HubError."""
    script = await bring(call.hub, namespace, code, volumes)
    try:
        return await submit(script)
    except HubError as error:
        if script.output.transport != "bucket" or not _is_about_the_bucket(error, len(volumes)):
            raise
        return await submit(await bring(call.hub, namespace, code, volumes, refused=error.message))


def _is_about_the_bucket(error: HubError, others: int) -> bool:
    """Say whether a job was refused for the volume that we added, behind those that were asked for."""
    if error.status == 501:
        return not others and "volumes" in error.message
    return f"volumes[{others}]" in error.message


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
    return _job_done(call, Followed(job, tail))


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


async def rerun(call: Call, args: Rerun) -> Done:
    """Submit a job again as it was, with its secrets."""
    namespace, job_id = await call.place(args.job_id, args.namespace)
    job = await call.hub.call("POST", job_path(namespace, job_id, "duplicate"))
    return await _attached(call, job, args, [])


async def _submit(
    call: Call,
    namespace: str,
    body: dict[str, Any],
    attached: Attached,
    keyed: Keyed,
    script: ScriptOutput | None = None,
) -> Done:
    key = keyed.idempotency_key
    headers = {"idempotency-key": key} if key else {}
    reply = await call.hub.request("POST", job_path(namespace), json.dumps(body).encode(), headers)
    done = await _attached(call, reply.json(), attached, list(wire.part(body, "secrets").values()), script)
    if key and reply.headers.get("idempotency-key") != key:
        done = replace(done, next_steps=[*done.next_steps, _KEY_UNKNOWN])
    return done


async def _attached(
    call: Call, job: Json, attached: Attached, hidden: list[str], script: ScriptOutput | None = None
) -> Done:
    tail = Tail(attached.tail, [call.hub.token, *hidden])
    if attached.detach or not attached.wait_seconds:
        return _job_done(call, Followed(job, tail), script, with_log=False)
    await call.report(0.0, attached.wait_seconds, f"job {job['id']} is accepted")
    followed = await follow(call.hub, job, attached.wait_seconds, tail, call.report, from_start=True)
    if followed.is_over and not tail.seen:
        with contextlib.suppress(HubError):  # it was over before its log was opened
            await read_tail(call.hub, followed.job, tail, attached.tail)
    return _job_done(call, followed, script)


def _job_done(call: Call, followed: Followed, script: ScriptOutput | None = None, *, with_log: bool = True) -> Done:
    job = wire.job_output(followed.job, call.hub.endpoint)
    lines = followed.tail.lines()
    texts = [rendering.job_line(job), f"URL: {job.url}", *rendering.cost_rows(job.cost_usd)]
    if script is not None:
        texts.append(_script_text(script))
    if with_log:
        texts.append(rendering.log_block(lines, f"The last {len(lines)} lines of its log"))
    outcome = JobOutcome(
        job=job,
        script=script,
        logs=lines if with_log else None,
        logs_finished=followed.is_over if with_log else None,
        logs_truncated=(followed.tail.seen > len(lines)) if with_log else None,
    )
    return Done(outcome, "\n".join(texts), advice.after_job(job, lines), [log_link(job)])


def _script_text(script: ScriptOutput) -> str:
    match script.transport:
        case "bucket":
            return (
                f"The script is at /artifacts/script.py. What the job writes to /artifacts is kept in {script.results}"
            )
        case "environment":
            return f"The script travels in a variable of the job: {script.reason}. There is no /artifacts from us."
        case "url":
            return "uv fetches the script itself."
        case "path":
            return "The script is a path inside the job, or a program that uv finds."
