"""The operations that start jobs, and what an answer says of a job that was followed."""

import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from runstead.mcp import advice, rendering, wire
from runstead.mcp.arguments import Attached, Keyed, Rerun, Run, Uv, VolumeMount, WithScript
from runstead.mcp.call import Call, Done
from runstead.mcp.following import Followed, Tail, follow, read_tail
from runstead.mcp.hub import HubError, job_path
from runstead.mcp.outcome import JobOutcome, ScriptOutput
from runstead.mcp.resources import log_link
from runstead.mcp.scripts import Script, bring, uv_command
from runstead.mcp.wire import Json

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
        return job_done(call, Followed(job, tail), script, with_log=False)
    await call.report(0.0, attached.wait_seconds, f"job {job['id']} is accepted")
    followed = await follow(call.hub, job, attached.wait_seconds, tail, call.report, from_start=True)
    if followed.is_over and not tail.seen:
        with contextlib.suppress(HubError):  # it was over before its log was opened
            await read_tail(call.hub, followed.job, tail, attached.tail)
    return job_done(call, followed, script)


def job_done(call: Call, followed: Followed, script: ScriptOutput | None = None, *, with_log: bool = True) -> Done:
    """Return what is known of a job that was followed."""
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
