"""Usage and help, made of the arguments' own descriptions and one example per operation."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runstead.mcp.call import Operation

INSTRUCTIONS = (
    "Runs commands and Python scripts as jobs on remote machines, through the Hugging Face Jobs API. Call hf_jobs "
    "without arguments for how it is used, and hf_whoami for whose jobs they are."
)

DESCRIPTION = (
    "Run commands and Python scripts as jobs on remote machines (CPU and GPU) and look after them: submit, wait, "
    "read logs, inspect, cancel, run again, schedule. Call it without arguments for usage, or with "
    '{"operation": "<name>", "args": {"help": true}} for the arguments of one operation. run and uv start a new job '
    "with every call unless you pass idempotency_key."
)


def usage(operations: Mapping[str, Operation]) -> str:
    """Return what the tool says when it is called empty."""
    rows = "\n".join(f"- `{name}`: {operation.summary}" for name, operation in operations.items())
    return f"""# hf_jobs

Call it with an `operation` and its `args`:

{rows}

{_block(operations["uv"].example)}

{_block(operations["run"].example)}

## What to know

- `uv` runs Python code as it is; name every package it needs in `dependencies`.
- `run` takes `command` as a list of words, or as a text for `sh -c`.
- The answer waits for the job up to `wait_seconds` (30); then `wait` goes on. `detach: true` does not wait.
- A job that reads private things of the Hub, or uploads, needs `secrets: {{"HF_TOKEN": "$HF_TOKEN"}}`: your own \
token, which you need not know. Never put a token into `env`, `command` or `script`.
- What a job leaves on its disk is gone with it. Write results to a mounted bucket \
(`volumes: ["hf://buckets/OWNER/NAME:/data"]`), or, with `uv`, to `/artifacts`.
- Set `timeout` to what the job needs and half as much again. Without it a job is stopped after 30 minutes.
- To submit is not idempotent: after an error you cannot explain, look with `ps` before you submit again, or pass \
`idempotency_key`.
- Tell the user the job's id and URL.

`{{"operation": "<name>", "args": {{"help": true}}}}` shows the arguments of an operation."""


def operation_help(operation: Operation) -> str:
    """Return how one operation is called."""
    fields = [_row(field, info) for field, info in operation.arguments.model_fields.items()]
    rows = "\n".join(fields) if fields else "It takes no arguments."
    return f"# {operation.name}\n\n{operation.summary}\n\n{rows}\n\n{_block(operation.example)}"


def required(arguments: type[BaseModel]) -> list[str]:
    """Return the names of the arguments that must be given."""
    return [name for name, info in arguments.model_fields.items() if info.is_required()]


def _row(name: str, info: FieldInfo) -> str:
    if info.is_required():
        said = "required"
    else:
        default: Any = info.get_default(call_default_factory=True)  # pyright: ignore[reportUnknownMemberType]
        said = "optional" if default in (None, {}, [], False) else f"default {_plain(default)}"
    return f"- `{name}` ({said}): {info.description or ''}".rstrip(": ")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _block(example: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(example, indent=2)}\n```"
