"""How a script reaches its job.

Python code goes into a new folder of the namespace's bucket `jobs-artifacts`, which is mounted at `/artifacts`: what
the job writes there is kept beside its script. Where that bucket cannot be had, or the path is taken, the code
travels in a variable of the job, as base64. The folder has the name that clients give to folders of scripts
(`<YYYYMMDDTHHMMSS>-<6 hex>`, in huggingface_hub 2.4.0), so that servers may tell by it that it is old.
"""

import base64
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from runstead.mcp.arguments import VolumeMount
from runstead.mcp.hub import Hub, HubError
from runstead.mcp.outcome import ScriptOutput

BUCKET = "jobs-artifacts"
FOLDER = "_scripts"
MOUNT = "/artifacts"
VARIABLE = "UV_SCRIPT_BASE64"
_NAME = "script.py"
# Linux passes 131,071 bytes in one variable, its name included.
_MOST_ENCODED = 130_000
_UNPACK = f'd=$(mktemp -d) && printf %s "${VARIABLE}" | base64 -d > "$d/{_NAME}" && unset {VARIABLE} && exec'
# A word that can be a path or a program, and no Python that does anything.
_WORD = re.compile(r"[\w@%+=:,./~-]+", re.ASCII)


class ScriptTooLarge(Exception):
    """The script fits into no variable, and the bucket cannot be had."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a job is given to run a script."""

    place: str | None  # what `uv run` is told; None: it is in a variable
    output: ScriptOutput
    volumes: tuple[VolumeMount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


async def bring(
    hub: Hub, namespace: str, script: str, volumes: Sequence[VolumeMount], refused: str | None = None
) -> Script:
    """Bring a script to where its job will find it. `refused` says why a job may not have the bucket."""
    if script.startswith(("https://", "http://")):
        return Script(script, ScriptOutput(transport="url"))
    code: bytes | None = None
    if "\n" not in script and _WORD.fullmatch(script.strip()):
        code = hub.local_script(script.strip())
        if code is None:
            return Script(script.strip(), ScriptOutput(transport="path"))
    if code is None:
        code = script.encode()
    reason = _taken(volumes) if refused is None else f"the job may not have the bucket: {refused}"
    if reason is None:
        try:
            return await _in_bucket(hub, namespace, code)
        except HubError as error:
            reason = f"the bucket {namespace}/{BUCKET} cannot be had: {error.message}"
    return _in_variable(code, reason)


def uv_command(script: Script, dependencies: Sequence[str], python: str | None, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a script."""
    words = ["uv", "run"]
    for package in dependencies:
        words += ["--with", package]
    if python is not None:
        words += ["--python", python]
    if script.place is not None:
        return [*words, script.place, *arguments]
    return ["sh", "-c", f'{_UNPACK} {shlex.join(words)} "$d/{_NAME}" {shlex.join(arguments)}'.rstrip()]


async def _in_bucket(hub: Hub, namespace: str, code: bytes) -> Script:
    bucket = f"{namespace}/{BUCKET}"
    folder = f"{FOLDER}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    await hub.store(bucket, f"{folder}/{_NAME}", code)
    mount = VolumeMount(type="bucket", source=bucket, mount_path=MOUNT, path=folder, read_only=False)
    output = ScriptOutput(transport="bucket", results=f"hf://buckets/{bucket}/{folder}")
    return Script(f"{MOUNT}/{_NAME}", output, (mount,))


def _in_variable(code: bytes, reason: str) -> Script:
    encoded = base64.b64encode(code).decode()
    if len(encoded) > _MOST_ENCODED:
        raise ScriptTooLarge(
            f"the script has {len(code):,} bytes; without the bucket ({reason}) it may have "
            f"{_MOST_ENCODED * 3 // 4:,}: put it into a bucket of yours, mount that with `volumes`, and give its path"
        )
    return Script(None, ScriptOutput(transport="environment", reason=reason), environment={VARIABLE: encoded})


def _taken(volumes: Sequence[VolumeMount]) -> str | None:
    for volume in volumes:
        path = volume.mount_path.rstrip("/") + "/"
        if path.startswith(f"{MOUNT}/") or f"{MOUNT}/".startswith(path):
            return f"{MOUNT} is taken by the volume at {volume.mount_path}"
    return None
