"""The two tools, `hf_jobs` and `hf_whoami`: a call comes in as JSON, and an answer always goes out."""

import difflib
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError

from runstead.mcp import advice, help, rendering
from runstead.mcp.call import Call, Done, Operation
from runstead.mcp.following import Report
from runstead.mcp.hub import Hub, HubError
from runstead.mcp.operations import OPERATIONS
from runstead.mcp.outcome import Answer, ErrorOutcome, HelpOutcome, Identity, Result, UsageOutcome
from runstead.mcp.scripts import ScriptTooLarge
from runstead.mcp.wire import Json, part, parts

log = structlog.get_logger()

JOBS_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "operation": {
            "type": "string",
            "enum": list(OPERATIONS),
            "description": "What to do. Without it: usage.",
        },
        "args": {
            "type": "object",
            "description": 'The arguments of the operation. {"help": true} shows which there are.',
            "additionalProperties": True,
        },
    },
}
WHOAMI_INPUT: dict[str, Any] = {"type": "object", "properties": {}}
WHOAMI_DESCRIPTION = "Who you are to the Jobs API: the endpoint, the user of your token, and where it may start jobs."


async def call_jobs(hub: Hub, given: Mapping[str, Any], report: Report) -> Answer:
    """Carry out one call of `hf_jobs`."""
    name = given.get("operation")
    if name in (None, ""):
        text = help.usage(OPERATIONS)
        return _answer(
            None, Done(UsageOutcome(available_operations=list(OPERATIONS), instructions=text), text, total=0)
        )
    operation = OPERATIONS.get(" ".join(str(name).lower().split()))
    if operation is None:
        return _unknown(str(name))
    args = given.get("args")
    if args is None:
        args = {key: value for key, value in given.items() if key not in ("operation", "args")}
    if not isinstance(args, dict):
        return _invalid(operation, ["args should be an object"])
    return await _perform(hub, operation, dict(args), report)  # pyright: ignore[reportUnknownArgumentType]


async def _perform(hub: Hub, operation: Operation, args: dict[str, Any], report: Report) -> Answer:
    asked = args.pop("help", False) in (True, "true")
    if asked or (not args and help.required(operation.arguments)):
        text = help.operation_help(operation)
        reason = "requested" if asked else "missing_arguments"
        return _answer(
            operation, Done(HelpOutcome(operation=operation.name, reason=reason, instructions=text), text, total=0)
        )
    try:
        checked = operation.arguments.model_validate(args)
    except ValidationError as error:
        return _invalid(operation, _complaints(error, operation.arguments))
    try:
        return _answer(operation, await operation.perform(Call(hub, report, operation.name), checked))
    except HubError as error:
        return refusal(operation, error)
    except ScriptTooLarge as error:
        return _error(operation, ErrorOutcome(code="validation", message=str(error)), [])
    except Exception as error:  # an agent is always answered, also where an endpoint answers like no other
        log.error("a tool failed unexpectedly", operation=operation.name, exc_info=error)
        message = f"the answer of the endpoint was not understood: {type(error).__name__}"
        return _error(operation, ErrorOutcome(code="internal", message=message), ["Tell the user; do not retry."])


async def call_whoami(hub: Hub) -> Answer:
    """Carry out one call of `hf_whoami`."""
    try:
        who = await hub.call("GET", "/api/whoami-v2") if hub.token else None
    except HubError as error:
        if error.status != 401:
            text = _with_steps(f"That was not possible: {error.message}", advice.after_refusal(error, "hf_whoami"))
            unknown = Identity(authenticated=False, endpoint=hub.endpoint)
            return Answer(text, unknown.model_dump(mode="json"), is_error=True)
        who = None
    identity = _identity(who, hub.endpoint)
    return Answer(rendering.identity_text(identity), identity.model_dump(mode="json", exclude_none=True))


def _identity(who: Json | None, endpoint: str) -> Identity:
    if who is None:
        return Identity(authenticated=False, endpoint=endpoint)
    token = part(part(who, "auth"), "accessToken")
    orgs = parts(who, "orgs")
    role = token.get("role")
    if role == "fineGrained":
        may = [
            one["entity"].get("name", "")
            for one in parts(part(token, "fineGrained"), "scoped")
            if any(permission.endswith("write") and "job" in permission for permission in one.get("permissions", ()))
        ]
    elif role == "read":
        may = []
    else:
        may = [who["name"], *(one["name"] for one in orgs if one.get("roleInOrg") not in ("read", "no_access"))]
    return Identity(
        authenticated=True,
        endpoint=endpoint,
        name=who["name"],
        fullname=who.get("fullname"),
        email=who.get("email"),
        organizations=[one["name"] for one in orgs],
        token_name=token.get("displayName"),
        token_role=role,
        jobs_namespaces=may,
    )


def refusal(operation: Operation, error: HubError) -> Answer:
    """Return the answer for a request that was refused."""
    code = "unreachable" if error.status == 0 else "refused"
    outcome = ErrorOutcome(code=code, status=error.status or None, message=error.message)
    return _error(operation, outcome, advice.after_refusal(error, operation.name))


def _unknown(name: str) -> Answer:
    near = difflib.get_close_matches(name.lower(), OPERATIONS, 1)
    guess = [f"Did you mean {near[0]!r}?"] if near else []
    message = f"there is no operation {name[:100]!r}; there are: {', '.join(OPERATIONS)}"
    return _error(None, ErrorOutcome(code="unknown_operation", message=message), guess)


def _invalid(operation: Operation, complaints: list[str]) -> Answer:
    outcome = ErrorOutcome(code="validation", message="; ".join(complaints))
    example = f'{{"operation": "{operation.name}", "args": {{"help": true}}}} shows the arguments.'
    return _error(operation, outcome, [example])


def _complaints(error: ValidationError, model: type[BaseModel]) -> list[str]:
    complaints: list[str] = []
    for one in error.errors(include_url=False, include_input=False, include_context=False)[:8]:
        where = ".".join(str(part) for part in one["loc"] if not str(part).startswith("function-"))[:80]
        if one["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, model.model_fields, 1)
            said = f"is no argument of this operation{f', {near[0]!r} is' if near else ''}"
        elif one["type"] == "missing":
            said = "is required"
        else:
            said = one["msg"].removeprefix("Value error, ")
        complaints.append(f"{where}: {said}" if where else said)
    return list(dict.fromkeys(complaints))


def _error(operation: Operation | None, outcome: ErrorOutcome, steps: list[str]) -> Answer:
    text = f"That was not done: {outcome.message}"
    return _answer(operation, Done(outcome, text, steps, total=0, is_error=True))


def _answer(operation: Operation | None, done: Done) -> Answer:
    result = Result.model_construct(
        operation=operation.name if operation else None,
        outcome=done.outcome,
        next_steps=list(done.next_steps),
        total_results=done.total,
        results_shared=0 if done.is_error else done.total,
    )
    structured = result.model_dump(mode="json", exclude_none=True)
    return Answer(_with_steps(done.text, done.next_steps), structured, done.is_error, done.links)


def _with_steps(text: str, steps: Any) -> str:
    return "\n".join([text, *(f"Next: {step}" for step in steps)])
