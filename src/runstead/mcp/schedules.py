"""The operations on schedules (wire-jobs §17)."""

from typing import Any, Literal

from runstead.mcp import rendering, wire
from runstead.mcp.arguments import OneSchedule, Reschedule, ScheduledLabels, ScheduledPs, ScheduledRun, ScheduledUv
from runstead.mcp.call import Call, Done
from runstead.mcp.hub import job_path
from runstead.mcp.outcome import (
    AcknowledgementOutcome,
    JobOutcome,
    ScheduledJobOutcome,
    ScheduledJobsOutcome,
    ScriptOutput,
)
from runstead.mcp.resources import log_link
from runstead.mcp.scripts import Script
from runstead.mcp.submitting import script_body, shell_words, with_script


async def run(call: Call, args: ScheduledRun) -> Done:
    """Schedule a command."""
    namespace = await call.namespace(args.namespace)
    body = wire.job_spec(args, args.image, shell_words(args.command), call.hub.token)
    return await _create(call, namespace, args, body)


async def uv(call: Call, args: ScheduledUv) -> Done:
    """Schedule a script."""
    namespace = await call.namespace(args.namespace)

    async def submit(script: Script) -> Done:
        return await _create(call, namespace, args, script_body(call, args, script), script.output)

    return await with_script(call, namespace, args.script, args.volumes, submit)


async def ps(call: Call, args: ScheduledPs) -> Done:
    """List schedules."""
    namespace = await call.namespace(args.namespace)
    found = [wire.scheduled_output(one) for one in await call.hub.call("GET", job_path(namespace, scheduled=True))]
    shown = [one for one in found if args.all or not one.suspended]
    hidden = len(found) - len(shown)
    steps = [f"{hidden} are suspended and not shown: pass all: true."] if hidden else []
    text = rendering.schedules_table(shown) if shown else f"No schedules in {namespace}."
    return Done(
        ScheduledJobsOutcome(scheduled_jobs=shown, total_scheduled_jobs=len(shown)), text, steps, total=len(shown)
    )


async def inspect(call: Call, args: OneSchedule) -> Done:
    """Show all that is known of a schedule."""
    namespace, own_id = await call.place(args.scheduled_job_id, args.namespace)
    found = wire.scheduled_output(await call.hub.call("GET", job_path(namespace, own_id, scheduled=True)))
    return Done(ScheduledJobOutcome(scheduled_job=found), rendering.scheduled_text(found))


async def suspend(call: Call, args: OneSchedule) -> Done:
    """Stop starting runs."""
    return await _change(call, args, "POST", "suspend", "suspended")


async def resume(call: Call, args: OneSchedule) -> Done:
    """Start runs again."""
    return await _change(call, args, "POST", "resume", "resumed")


async def reschedule(call: Call, args: Reschedule) -> Done:
    """Change when runs are started."""
    namespace, own_id = await call.place(args.scheduled_job_id, args.namespace)
    body = {"schedule": args.schedule}
    path = job_path(namespace, own_id, "schedule", scheduled=True)
    found = wire.scheduled_output(await call.hub.call("POST", path, body=body))
    return Done(ScheduledJobOutcome(scheduled_job=found), rendering.scheduled_text(found))


async def labels(call: Call, args: ScheduledLabels) -> Done:
    """Change the labels of a schedule, which its later runs get."""
    namespace, own_id = await call.place(args.scheduled_job_id, args.namespace)
    present: wire.Json = {}
    if not args.replace:
        found = await call.hub.call("GET", job_path(namespace, own_id, scheduled=True))
        present = wire.part(wire.part(found, "jobSpec"), "labels")
    body = {"labels": args.changed(present)}
    path = job_path(namespace, own_id, "labels", scheduled=True)
    shown = wire.scheduled_output(await call.hub.call("PUT", path, body=body))
    text = f"Schedule {shown.id} has now: {rendering.labels_text(shown.job_spec.labels)}"
    return Done(ScheduledJobOutcome(scheduled_job=shown), text)


async def delete(call: Call, args: OneSchedule) -> Done:
    """Take a schedule away. Runs that were started go on."""
    return await _change(call, args, "DELETE", None, "deleted")


async def trigger(call: Call, args: OneSchedule) -> Done:
    """Start a run now, beside those that are due."""
    namespace, own_id = await call.place(args.scheduled_job_id, args.namespace)
    job = wire.job_output(
        await call.hub.call("POST", job_path(namespace, own_id, "run", scheduled=True)), call.hub.endpoint
    )
    text = f"{rendering.job_line(job)}\nURL: {job.url}"
    steps = [f'{{"operation": "wait", "args": {{"job_id": "{job.id}"}}}} waits for its end.']
    return Done(JobOutcome(job=job), text, steps, [log_link(job)])


async def _create(
    call: Call,
    namespace: str,
    args: ScheduledRun | ScheduledUv,
    spec: dict[str, Any],
    script: ScriptOutput | None = None,
) -> Done:
    body: dict[str, Any] = {"jobSpec": spec, "schedule": args.schedule}
    if args.suspend:
        body["suspend"] = True
    if args.concurrency:
        body["concurrency"] = True
    found = wire.scheduled_output(await call.hub.call("POST", job_path(namespace, scheduled=True), body=body))
    steps = [f'{{"operation": "scheduled trigger", "args": {{"scheduled_job_id": "{found.id}"}}}} tries it now.']
    outcome = ScheduledJobOutcome(scheduled_job=found, script=script)
    return Done(outcome, rendering.scheduled_text(found), steps)


async def _change(
    call: Call, args: OneSchedule, method: str, verb: str | None, action: Literal["deleted", "suspended", "resumed"]
) -> Done:
    namespace, own_id = await call.place(args.scheduled_job_id, args.namespace)
    parts = (own_id,) if verb is None else (own_id, verb)
    await call.hub.call(method, job_path(namespace, *parts, scheduled=True))
    message = f"Schedule {own_id} is {action}."
    return Done(AcknowledgementOutcome(resource_id=own_id, action=action, message=message), message)
