"""What clients send and what they need back, as JSON. Keys are those of huggingface_hub 2.4.0 (`_sandbox.py`)."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from runstead.model.errors import Invalid, TooLarge
from runstead.model.executions import Background, Command, Ended, FileEntry
from runstead.model.sandboxes import NewPooledSandbox
from runstead.services.sandboxes.hosts import Member
from runstead.services.sandboxes.recognition import egress_of

_SHELL = ("/bin/sh", "-c")
_MAX_ENVIRONMENT_BYTES = 64 * 1024
_MAX_TEXT_BYTES = 131_071  # in one string, which Linux passes to a program
_LONGEST_TIMEOUT_SECONDS = 10 * 365 * 24 * 3600
_MEBIBYTE = 2**20


def command_of(body: Mapping[str, Any], environment: Mapping[str, str]) -> Command:
    """Return the command that was asked for; `environment` is what it gets unless it says otherwise. Raises Invalid."""
    return Command(
        argv=_argv(body),
        environment={**environment, **texts(body.get("env"), "env")},
        folder=_text(body, "cwd") or None,
        input=_text(body, "stdin") is not None,
        timeout_seconds=_timeout(body),
    )


def stdin_of(body: Mapping[str, Any]) -> bytes:
    """Return what is written to the command. Raises Invalid."""
    return (_text(body, "stdin") or "").encode("utf-8", "surrogatepass")


def tag_of(body: Mapping[str, Any]) -> str | None:
    """Return what the caller calls a process. Raises Invalid."""
    return _text(body, "tag")


def texts(value: object, field: str) -> dict[str, str]:
    """Return variables as text; the client's API lets numbers, booleans and nulls through. Raises Invalid."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid("should be an object of names and values", field)
    found: dict[str, str] = {}
    for name, one in cast("Mapping[str, object]", value).items():
        if not isinstance(one, str | int | float | None) or (isinstance(one, float) and not math.isfinite(one)):
            raise Invalid("should be text, a finite number, true, false or null", f"{field}.{name[:60]}")
        if not name or "=" in name or "\0" in name:
            raise Invalid(f"a variable's name is not empty and has no '=' and no NUL, not {name[:60]!r}", field)
        found[name] = _checked("" if one is None else one if isinstance(one, str) else json.dumps(one), field)
    return found


def _argv(body: Mapping[str, Any]) -> tuple[str, ...]:
    command, shell = body.get("cmd"), body.get("shell")
    if shell is not None and not isinstance(shell, bool):
        raise Invalid("should be true or false", "shell")
    if isinstance(command, str):
        if shell is False:
            raise Invalid("without a shell the command is a list of words", "cmd")
        if not command:
            raise Invalid("is empty", "cmd")
        return (*_SHELL, _checked(command, "cmd"))
    if not isinstance(command, list) or not command:
        raise Invalid("should be a text for the shell, or a list of one or more words", "cmd")
    if shell:
        raise Invalid("for the shell the command is one text, not a list", "cmd")
    words = cast("Sequence[object]", command)
    if not all(isinstance(word, str) for word in words):
        raise Invalid("every word should be text", "cmd")
    return tuple(_checked(word, "cmd") for word in cast("Sequence[str]", words))


def _text(body: Mapping[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise Invalid("should be text", field)
    return value if value is None or field == "stdin" else _checked(value, field)


def _timeout(body: Mapping[str, Any]) -> float | None:
    value = body.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_TIMEOUT_SECONDS:
        raise Invalid("should be a number of seconds, 0 or more", "timeout")
    return float(value)


def _checked(text: str, field: str) -> str:
    if "\0" in text:
        raise Invalid("contains a NUL character, which no program can be given", field)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Invalid("contains half of a surrogate pair, which is no text", field) from None
    if size > _MAX_TEXT_BYTES:
        raise TooLarge(
            f"has {size:,} bytes and Linux passes at most {_MAX_TEXT_BYTES:,} in one string; write the data to a file",
            field,
        )
    return text


def event_line(name: str, **fields: object) -> bytes:
    """Return one event of a command. ASCII, because clients split lines at more than the line feed."""
    return json.dumps({"event": name, **fields}, separators=(",", ":")).encode() + b"\n"


def exit_line(ended: Ended, duration_seconds: float) -> bytes:
    """Return the last event of a command."""
    return event_line(
        "exit",
        exit_code=ended.exit_code,
        signal=ended.signal,
        timed_out=ended.timed_out,
        duration_ms=int(duration_seconds * 1000),
    )


def command_as_sent(argv: Sequence[str]) -> str | list[str]:
    """Return a command as its caller wrote it."""
    return argv[2] if len(argv) == 3 and tuple(argv[:2]) == _SHELL else list(argv)


def started_json(process: Background) -> dict[str, Any]:
    """Return a process that was just started in the background."""
    return {
        "id": f"p-{process.id}",
        "pid": process.pid,
        "cmd": command_as_sent(process.argv),
        "tag": process.tag,
    }


def process_json(process: Background) -> dict[str, Any]:
    """Return a process of the background."""
    ended = process.ended
    return {
        **started_json(process),
        "started_at_ms": _milliseconds(process.started_at),
        "running": ended is None,
        "exit_code": ended.exit_code if ended else None,
    }


def entry_json(entry: FileEntry) -> dict[str, Any]:
    """Return a name of the file system: these six keys and no other, or the client fails."""
    return {
        "name": entry.name,
        "path": entry.path,
        "type": "file" if entry.kind == "other" else entry.kind,
        "size": entry.size_bytes,
        "mtime_ms": _milliseconds(entry.modified_at),
        "mode": f"{entry.mode:o}",
    }


def new_sandboxes(body: Mapping[str, Any]) -> tuple[NewPooledSandbox, int]:
    """Return what was asked of a host, and how many. Raises Invalid."""
    environment = texts(body.get("env"), "env")
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in environment.items())
    if size > _MAX_ENVIRONMENT_BYTES:
        raise TooLarge(f"at most {_MAX_ENVIRONMENT_BYTES:,} bytes, not {size:,}", "env")
    usual = NewPooledSandbox()
    megabytes = _count(body, "max_mem_mb", 1, 1_048_576)
    wanted = NewPooledSandbox(
        idle_seconds=_count(body, "idle_timeout_secs", 0, _LONGEST_TIMEOUT_SECONDS) or None,
        environment=environment,
        processes=_count(body, "max_procs", 1, 4096) or usual.processes,
        memory_bytes=megabytes * _MEBIBYTE if megabytes else usual.memory_bytes,
        egress=egress_of(environment, "env"),
    )
    return wanted, _count(body, "count", 1, 1000) or 1


def _count(body: Mapping[str, Any], field: str, least: int, most: int) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(f"should be a whole number from {least} to {most:,}", field)
    return value


def created_json(member: Member) -> dict[str, Any]:
    """Return a pooled sandbox to who asked for it; the only answers with its token are this and `token_json`."""
    sandbox = member.sandbox
    return {
        "id": sandbox.id,
        "token": member.token,
        "uid": sandbox.uid,
        "home": sandbox.home,
        "confinement": sandbox.confinement,
    }


def member_json(member: Member) -> dict[str, Any]:
    """Return a pooled sandbox as it is listed."""
    sandbox = member.sandbox
    return {
        "id": sandbox.id,
        "uid": sandbox.uid,
        "home": sandbox.home,
        "created_at_ms": _milliseconds(sandbox.created_at),
        "confinement": sandbox.confinement,
    }


def token_json(member: Member) -> dict[str, Any]:
    """Return the token of a pooled sandbox."""
    return {"id": member.sandbox.id, "token": member.token}


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
