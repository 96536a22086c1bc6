"""What to do next: after a refusal, and after a job that failed. Pure functions from what is known to a sentence."""

import re
from collections.abc import Sequence

from runstead.mcp.hub import HubError
from runstead.mcp.outcome import JobOutput

_MODULE = re.compile(r"(?:ModuleNotFoundError|ImportError): No module named '([\w.]+)'")
_COMMAND = re.compile(r"(?:^|: )([\w./-]+): (?:command )?not found\b|No such file or directory: '([^']+)'")
_NO_SCRIPT = re.compile(r"Failed to spawn: `([^`]+)`")
_DENIED = re.compile(
    r"\b(?:401|403)\b.{0,80}(?:Unauthorized|Forbidden|Client Error)|GatedRepoError|RepositoryNotFoundError"
)
_DISK = re.compile(r"No space left on device")
_GPU_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError", re.IGNORECASE)


def after_refusal(error: HubError, operation: str) -> list[str]:
    """Say what to do about a request that was refused."""
    message = error.message.lower()
    match error.status:
        case 0:
            return ["The endpoint cannot be reached now. Check its address with the user, or try again in a minute."]
        case 401:
            return ["The token is missing, wrong, revoked or expired. Ask the user for a valid one; do not retry."]
        case 402:
            return ["The budget of this namespace is used up. Tell the user the figures; do not retry."]
        case 403:
            return ["Call hf_whoami to see which namespaces this token may use, and pass one as `namespace`."]
        case 404:
            return _unknown(operation)
        case 409:
            return ["Something of that kind exists or runs already. Look at it first, with `ps` or `scheduled ps`."]
        case 413:
            return ["Put the data into a bucket and mount it with `volumes`."]
        case 429 | 502 | 503 | 504:
            wait = f"{error.retry_after} s" if error.retry_after else "some seconds"
            return [f"This passes. Wait {wait} and call again with the same arguments."]
        case 501:
            return ["This endpoint does not have that. Leave out what the message names, or do without the operation."]
        case _ if "flavor" in message:
            return ["Call the operation `hardware` for the flavors there are, and name one of them."]
        case status if 400 <= status < 500:
            return [
                "Correct what the message names and call again. "
                f'{{"operation": "{operation}", "args": {{"help": true}}}} shows the arguments.'
            ]
        case _:
            return ["The server failed on this. Try once more; if it happens again, tell the user."]


def _unknown(operation: str) -> list[str]:
    if operation.startswith("scheduled"):
        return ['Call {"operation": "scheduled ps", "args": {"all": true}} for the schedules there are.']
    return [
        'Call {"operation": "ps", "args": {"all": true}} for the jobs there are; name the `namespace` if the job is '
        "not of your own user."
    ]


def after_job(job: JobOutput, lines: Sequence[str]) -> list[str]:
    """Say what to do about a job as it stands, with what its log ends with."""
    match job.status.stage:
        case "COMPLETED":
            return []
        case "CANCELED":
            return ["It was canceled. `rerun` starts it again as it was."]
        case "ERROR":
            return _after_failure(job, lines)
        case _:
            return [
                f'It goes on. {{"operation": "wait", "args": {{"job_id": "{job.id}"}}}} waits for its end, '
                "`logs` shows what it wrote, `cancel` ends it."
            ]


def _after_failure(job: JobOutput, lines: Sequence[str]) -> list[str]:
    log = "\n".join(lines[-200:])
    reason = f"{job.status.failure_class or ''} {job.status.message or ''}".lower()
    steps: list[str] = []
    if found := _MODULE.search(log):
        package = found[1].partition(".")[0]
        steps.append(
            f"Add the package of the module {package!r} to `dependencies` (operation `uv`) and submit it again."
        )
    if "timeout" in reason:
        steps.append(f"It was stopped after {_span(job.timeout_seconds)}. Submit it again with a longer `timeout`.")
    elif "oom" in reason or job.status.exit_code == 137:
        steps.append("It had not enough memory. Take a larger flavor (operation `hardware`), or less data at a time.")
    if _GPU_MEMORY.search(log):
        steps.append("The GPU's memory was not enough: a smaller batch, or a flavor with more of it.")
    if _DISK.search(log):
        steps.append("The disk was full: write results to a mounted bucket, or take a larger flavor.")
    if _DENIED.search(log):
        steps.append('If it needs the Hub, pass secrets: {"HF_TOKEN": "$HF_TOKEN"}; else ask the user for access.')
    if found := _NO_SCRIPT.search(log):
        steps.append(
            f"{found[1]!r} is not there: a job sees no files of yours. Send the code itself as `script`, or its URL."
        )
    if not steps and (found := _COMMAND.search(log)):
        steps.append(f"{found[1] or found[2]!r} is not there: take an image that has it, or mount what you need.")
    if not steps and reason.startswith(("infra", "image", "volume")):
        steps.append("The cause is outside of the command: read the message, correct what it names, then `rerun`.")
    if not steps:
        steps.append("Read the end of the log, correct the command or script, and submit it again as a new job.")
    return steps


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "its time"
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
